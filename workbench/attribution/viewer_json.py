"""Published graphs as files: circuit-tracer's and Neuronpedia's JSON, whose nodes' names and numbers are compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, Le
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph_forms import TokenId
from workbench.attribution.viewer_graph import ViewerGraph, ViewerKind, ViewerLink, ViewerNode, with_influences
from workbench.core.checks import Number, checked
from workbench.core.files import replacing
from workbench.core.forms import parse_json, read_text
from workbench.core.type_words import shown

TYPES: dict[str, ViewerKind] = {
    "logit": "target",
    "embedding": "embedding",
    "mlp reconstruction error": "error",
    "lorsa error": "error",
    "bias": "bias",
    "cross layer transcoder": "latent",
    "lorsa": "latent",
    "unexplored node": "latent",
}
"""What `feature_type` says; viewers draw an unexplored node as a feature."""
NAME = re.compile(r"([0-9]{1,6})_(?:[a-z]+_)?([0-9]{1,10})_([0-9]{1,9})")
"""A feature's name: layer, a word in some graphs, index, position."""
HIGHEST = 10_000
"""Layers are numbered below this."""


@with_config(ConfigDict(extra="allow"))
class PublishedNode(TypedDict):
    """A node in a file."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: TokenId
    feature_type: str
    jsNodeId: str
    clerp: NotRequired[str | None]
    activation: NotRequired[Number | None]
    token_prob: NotRequired[Annotated[Number, Ge(0), Le(1)] | None]


class PublishedLink(TypedDict):
    """A link in a file, by the names of its nodes."""

    source: str
    target: str
    weight: Number


@with_config(ConfigDict(extra="allow"))
class PublishedMetadata(TypedDict):
    """What a file says of its graph."""

    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str


@with_config(ConfigDict(extra="allow"))
class PublishedView(TypedDict):
    """The saved view of a file; circuit-tracer's viewer saves texts, as they stand in its address."""

    pinnedIds: NotRequired[list[str] | str | None]
    supernodes: NotRequired[list[list[str]] | str | None]
    clerps: NotRequired[list[list[str]] | str | None]


@with_config(ConfigDict(extra="allow"))
class PublishedGraph(TypedDict):
    """A file."""

    metadata: PublishedMetadata
    qParams: PublishedView
    nodes: list[PublishedNode]
    links: list[PublishedLink]


class WrittenMetadata(TypedDict):
    """What circuit-tracer and we write of a graph."""

    slug: str
    scan: str
    transcoder_list: list[str]
    prompt_tokens: list[str]
    prompt: str
    node_threshold: Number | None
    schema_version: int


class WrittenView(PublishedView):
    """The view that circuit-tracer and we write."""

    linkType: str
    clickedId: str
    sg_pos: str


class WrittenNode(TypedDict):
    """A node that circuit-tracer and we write."""

    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    token_prob: Number
    is_target_logit: bool
    run_idx: int
    reverse_ctx_idx: int
    jsNodeId: str
    clerp: str
    influence: Number | None
    activation: Number | None


class WrittenGraph(TypedDict):
    """A file that circuit-tracer or we wrote, and that nobody added anything to."""

    metadata: WrittenMetadata
    qParams: WrittenView
    nodes: list[WrittenNode]
    links: list[PublishedLink]


@checked(AttributionError)
def read_viewer_graph(text: str) -> ViewerGraph:
    """The graph of a JSON text of circuit-tracer or Neuronpedia.

    Raises:
        AttributionError: the text is no such graph, two nodes have one name, or its links lead in a circle.
    """
    return _opened(text, "This is not a graph of circuit-tracer or Neuronpedia")


@checked(AttributionError)
def load_viewer_graph(path: str | Path) -> ViewerGraph:
    """The graph in a JSON file of circuit-tracer or Neuronpedia; errors as in `read_viewer_graph`."""
    text = read_text(path, AttributionError, "a graph of circuit-tracer or Neuronpedia")
    return _opened(text, f"{path} is not a graph of circuit-tracer or Neuronpedia")


def _opened(text: str, complaint: str) -> ViewerGraph:
    content = parse_json(text, PublishedGraph, AttributionError, complaint)
    try:
        return _graph(content)
    except AttributionError as error:
        raise AttributionError(f"{complaint}: {error}.") from error


def _graph(content: PublishedGraph) -> ViewerGraph:
    """The graph; errors say what is wrong without the file's name and without a full stop."""
    metadata, view = content["metadata"], content["qParams"]
    if not metadata["prompt_tokens"]:
        raise AttributionError("its prompt has no tokens")
    labels = {pair[0]: pair[1] for pair in _lists(view.get("clerps"), "labels") if len(pair) == 2}
    nodes = [_node(id, one, len(metadata["prompt_tokens"]), labels) for id, one in enumerate(content["nodes"])]
    top = 1 + max((node.layer for node in nodes if node.kind != "target"), default=-1)
    nodes = [_placed(node, top) for node in nodes]
    ids = {node.name: node.id for node in nodes}
    if len(ids) < len(nodes):
        twice = next(node.name for node in nodes if ids[node.name] != node.id)
        raise AttributionError(f"two of its nodes are called {shown(twice)}, so its links may mean either")
    if not any(node.kind == "target" for node in nodes):
        raise AttributionError("none of its nodes is a logit")
    links = [
        ViewerLink(ids[one["source"]], ids[one["target"]], float(one["weight"]))
        for one in content["links"]
        if one["source"] in ids and one["target"] in ids
    ]
    pinned = view.get("pinnedIds") or []
    pinned = pinned.split(",") if isinstance(pinned, str) else pinned
    groups = [group for group in _lists(view.get("supernodes"), "supernodes") if group]
    return ViewerGraph(
        prompt=metadata["prompt_tokens"],
        nodes=with_influences(nodes, links),
        edges=links,
        metadata=dict(metadata),
        view=dict(view),
        pinned=[ids[name] for name in pinned if name in ids],
        supernodes=[(group[0], [ids[name] for name in group[1:] if name in ids]) for group in groups],
        others={key: value for key, value in content.items() if key not in PublishedGraph.__annotations__},
        left_out=len(content["links"]) - len(links),
    )


def _lists(value: list[list[str]] | str | None, what: str) -> list[list[str]]:
    """Lists of texts, which may stand in a text of JSON."""
    if isinstance(value, str) and value:
        return parse_json(value, list[list[str]], AttributionError, f"its {what} can't be read")
    return value if isinstance(value, list) else []


def _node(id: int, saved: PublishedNode, length: int, labels: dict[str, str]) -> ViewerNode:
    kind: ViewerKind = TYPES.get(saved["feature_type"], "other")
    name, position = saved["node_id"], saved["ctx_idx"]
    if position >= length:
        raise AttributionError(f"its node {shown(name)} lies outside the prompt")
    layer = _layer(saved, kind)
    index = _index(saved, layer) if kind == "latent" else None
    renamed = labels.get(f"{saved['layer']}_{saved['feature']}_{position}", labels.get(str(saved["feature"])))
    label = (renamed if kind == "latent" else None) or saved.get("clerp") or ""
    if not label:
        label = {"error": f"error of layer {layer}", "embedding": "embedding"}.get(kind, "")
    if not label:
        label = name if index is None else f"layer {layer}, feature {index}"
    value = saved.get("token_prob") if kind == "target" else saved.get("activation")
    return ViewerNode(
        id, name, kind, layer, position, None if value is None else float(value), label, 0.0, index, dict(saved)
    )


def _layer(saved: PublishedNode, kind: ViewerKind) -> int:
    stated = str(saved["layer"])
    if kind == "embedding":
        return -1
    if kind == "target":  # tools number it differently; it is drawn above all others
        return HIGHEST
    if not (stated.isascii() and stated.isdigit() and int(stated[:9]) < HIGHEST):
        raise AttributionError(f"its node {shown(saved['node_id'])} is in no layer: {shown(saved['layer'])}")
    return int(stated)


def _placed(node: ViewerNode, top: int) -> ViewerNode:
    return replace(node, layer=top) if node.kind == "target" else node


def _index(saved: PublishedNode, layer: int) -> int | None:
    """The feature's index, where name and number agree on it: the number is the index, or its pair with the layer."""
    match = NAME.fullmatch(saved["node_id"])
    if match is None or (int(match[1]), int(match[3])) != (layer, saved["ctx_idx"]):
        return None
    index = int(match[2])
    return index if saved["feature"] in (index, paired(layer, index)) else None


def paired(layer: int, index: int) -> int:
    """One number for a layer and an index, by Cantor's pairing function, as viewers number features."""
    return (layer + index) * (layer + index + 1) // 2 + index


@checked(AttributionError)
def save_viewer_graph(content: dict[str, Any], path: str | Path) -> None:
    """Write a graph in the published form, from `to_neuronpedia` or `ViewerGraph.to_dict`, whole or not at all.

    Raises:
        AttributionError: it is no such graph, the file can't be written, or something else is there.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    read_viewer_graph(text)
    with replacing(Path(path), AttributionError, form=WrittenGraph) as temporary:
        temporary.write_text(text, encoding="utf-8")
