"""Graphs as JSON files: format 2 is written, formats 1 and 2 are read.

Format 1 names two keys otherwise: a node's `free_effect` is `gradient_effect` since format 2, and the graph's `made` is
`provenance`. A file ends with a seal, the SHA-256 of the text without it; files of older versions have none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from annotated_types import Ge, Le, Lt
from typing_extensions import TypedDict

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import FORMAT, Graph, Kind, Node
from workbench.core.checks import Natural, Number, checked
from workbench.core.files import replacing
from workbench.core.forms import as_form, parse_json, read_text
from workbench.dictionaries.features import Feature, FeatureError

SEAL = "sha256"
"""Key of the seal, the last one of a file."""
Layer = Annotated[int, Ge(-1), Lt(2**31)]
TokenId = Annotated[int, Ge(0), Lt(2**31)]


class _AnyNode(TypedDict):
    id: int
    kind: Kind
    layer: Layer
    position: Layer
    value: Number
    feature: str | None
    label: str
    influence: Number
    effect: Number


class SavedNode(_AnyNode):
    """A node in format 2."""

    gradient_effect: Number


class SavedNode1(_AnyNode):
    """A node in format 1."""

    free_effect: Number


class SavedRow(TypedDict):
    """A node whose sources were traced."""

    node: int
    scale: Number
    read: Number


class SavedEdge(TypedDict):
    """An edge, by the ids of its nodes."""

    source: int
    target: int
    weight: Number
    factor: Number
    invariant: Number | None
    scale: Number


class SavedTranscoder(TypedDict):
    """A transcoder that the graph was computed with."""

    name: str
    hash: str


class SavedPruning(TypedDict):
    """Arguments of `Graph.prune`."""

    share: Number
    edges: Number
    kinds: list[Kind]


class SavedProvenance(TypedDict):
    """Model, transcoders and settings of a graph."""

    model: str
    model_hash: str
    transcoders: list[SavedTranscoder]
    target_tokens: list[TokenId]
    target_probabilities: NotRequired[list[Annotated[Number, Ge(0), Le(1)]]]
    mlps: Literal["linear", "frozen"]
    first: Natural
    max_latents: Natural
    rest: Annotated[Number, Ge(0), Lt(1)]
    pruned: NotRequired[SavedPruning]


class _AnyGraph(TypedDict):
    prompt: list[str]
    tokens: list[TokenId]
    rows: list[SavedRow]
    edges: list[SavedEdge]
    shares: dict[str, Number]
    counts: dict[str, Natural]
    sha256: NotRequired[str]


class SavedGraph(_AnyGraph):
    """A graph in format 2."""

    format: Literal[2]
    nodes: list[SavedNode]
    provenance: SavedProvenance


class SavedGraph1(_AnyGraph):
    """A graph in format 1."""

    format: Literal[1]
    nodes: list[SavedNode1]
    made: SavedProvenance


_KEYS = SavedGraph.__annotations__.keys() - {SEAL}
FORMER = (_KEYS, (_KEYS - {"provenance"}) | {"made"})
"""The keys of files without a seal, in both formats."""


@checked(AttributionError)
def to_json(graph: Graph) -> str:
    """A graph as JSON text; a graph that is not pruned has up to a million edges."""
    return json.dumps(graph.to_dict(), indent=1, allow_nan=False)


@checked(AttributionError)
def from_json(text: str) -> Graph:
    """The graph that `to_json` or `save_graph` wrote; its features name their dictionaries and don't hold them.

    Raises:
        AttributionError: the text is no such graph, or was altered after `save_graph` wrote it.
    """
    return _opened(text, "This is not a graph that was saved as JSON")


@checked(AttributionError)
def save_graph(graph: Graph, path: str | Path) -> None:
    """Write a graph to a JSON file, whole or not at all: the text of `to_json`, with its SHA-256 at the end.

    Raises:
        AttributionError: the file can't be written, or something else than a graph is there.
    """
    with replacing(Path(path), AttributionError, form=SavedGraph | SavedGraph1, former=FORMER) as temporary:
        temporary.write_text(_sealed(to_json(graph)), encoding="utf-8")


@checked(AttributionError)
def load_graph(path: str | Path) -> Graph:
    """The graph in a file that `save_graph` wrote.

    Raises:
        AttributionError: the file can't be read, holds no such graph, or was altered after it was saved.
    """
    return _opened(read_text(path, AttributionError, "a graph"), f"{path} is not a graph that was saved as JSON")


def _opened(text: str, complaint: str) -> Graph:
    """The graph in a text; one with a seal has to be as it was saved, in any layout of the JSON."""
    content = parse_json(text, dict[str, Any], AttributionError, complaint)
    graph = _graph(content, complaint)
    if SEAL in content and text != (plain := _unsealed(text)) and _sealed(plain) == text:
        return graph
    if SEAL in content:
        rest = {key: value for key, value in content.items() if key != SEAL}
        if _sha256(json.dumps(rest, indent=1, allow_nan=False)) != content[SEAL]:
            raise AttributionError(f"{complaint}: it was altered after it was saved; save or copy it again.")
    return graph


def _sealed(text: str) -> str:
    """A text of `to_json` with its seal."""
    return f'{text[:-2]},\n "{SEAL}": "{_sha256(text)}"\n}}'


def _unsealed(text: str) -> str:
    """The text that was sealed, where `_sealed` wrote this one."""
    return f"{text.rpartition(',')[0]}\n}}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _graph(content: dict[str, Any], complaint: str) -> Graph:
    version = content.get("format")
    if version == 1:
        saved = _upgraded(as_form(content, SavedGraph1, AttributionError, complaint), complaint)
    elif version == FORMAT or not isinstance(version, int):
        saved = as_form(content, SavedGraph, AttributionError, complaint)
    else:
        raise AttributionError(f"{complaint}: it is in format {version}, and this version reads 1 to {FORMAT}.")
    if wrong := _inconsistency(saved):
        raise AttributionError(f"{complaint}: {wrong}.")
    try:
        nodes = [_node(one) for one in saved["nodes"]]
    except FeatureError as error:
        raise AttributionError(f"{complaint}: {error}") from error
    columns = {node.id: column for column, node in enumerate(nodes)}
    places = {row["node"]: place for place, row in enumerate(saved["rows"])}
    weights = torch.zeros(len(places), len(nodes))
    invariants = torch.full_like(weights, float("nan"))
    for edge in saved["edges"]:
        place = places[edge["target"]], columns[edge["source"]]
        weights[place] = edge["weight"]
        if edge["invariant"] is not None:
            invariants[place] = edge["invariant"]
    return Graph(
        prompt=saved["prompt"],
        tokens=saved["tokens"],
        nodes=nodes,
        rows=list(places),
        weights=weights,
        invariants=invariants,
        scales=[row["scale"] for row in saved["rows"]],
        totals=[row["read"] for row in saved["rows"]],
        shares=saved["shares"],
        counts=saved["counts"],
        provenance=dict(saved["provenance"]),
    )


def _node(saved: SavedNode) -> Node:
    feature = None if saved["feature"] is None else Feature.parse(saved["feature"])
    return Node(**{**saved, "feature": feature})


def _upgraded(old: SavedGraph1, complaint: str) -> SavedGraph:
    """A graph of format 1 in format 2."""
    nodes = [{**node, "gradient_effect": node["free_effect"]} for node in old["nodes"]]
    content = {**old, "format": 2, "nodes": nodes, "provenance": old["made"]}
    return as_form(content, SavedGraph, AttributionError, complaint)


def _inconsistency(saved: SavedGraph) -> str:
    """The first way in which the parts of a graph don't fit each other; empty where all fit."""
    nodes, edges = saved["nodes"], saved["edges"]
    ids, rows = [node["id"] for node in nodes], [row["node"] for row in saved["rows"]]
    length = len(saved["tokens"])
    wrong = {
        "it has another number of tokens than of their texts": length != len(saved["prompt"]) or not length,
        "its first node is not its target": not nodes or nodes[0]["kind"] != "target" or rows[:1] != ids[:1],
        "two of its nodes or rows have the same id": len(set(ids)) < len(ids) or len(set(rows)) < len(rows),
        "a row or edge names a node that is not there": not {*rows, *(edge["source"] for edge in edges)} <= set(ids),
        "an edge leads to a node without a row": not {edge["target"] for edge in edges} <= set(rows),
        "a node lies outside the prompt": any(node["position"] >= length for node in nodes),
        "its target is neither a token nor a latent": bool(nodes)
        and nodes[0]["feature"] is None
        and not saved["provenance"]["target_tokens"],
        "a latent has no feature": any(node["kind"] == "latent" and not node["feature"] for node in nodes),
    }
    return next((words for words, is_so in wrong.items() if is_so), "")
