"""Graphs as JSON files: format 3 is written, formats 1 to 3 are read (`graph_forms.py`).

A file ends with a seal, the SHA-256 of the text without it; files of older versions have none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import FORMAT, Graph, Node
from workbench.attribution.graph_forms import FORMER, SavedEdge, SavedGraph, SavedGraph1, SavedGraph2, SavedNode
from workbench.core.checks import checked
from workbench.core.files import replacing
from workbench.core.forms import as_form, parse_json, read_text
from workbench.dictionaries.features import Feature, FeatureError

SEAL = "sha256"
"""Key of the seal, the last one of a file."""


@checked(AttributionError)
def to_json(graph: Graph) -> str:
    """A graph as JSON text in one line; a graph that is not pruned has up to a million edges."""
    return _text(graph.to_dict())


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
    with replacing(
        Path(path), AttributionError, form=SavedGraph | SavedGraph2 | SavedGraph1, former=FORMER
    ) as temporary:
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
        indent = 1 if content["format"] < 3 else None
        if _sha256(_text(rest, indent)) != content[SEAL]:
            raise AttributionError(f"{complaint}: it was altered after it was saved; save or copy it again.")
    return graph


def _text(content: dict[str, Any], indent: int | None = None) -> str:
    """The JSON text that is sealed; older formats have an indent of 1."""
    separators = (",", ":") if indent is None else None
    return json.dumps(content, indent=indent, separators=separators, allow_nan=False)


def _sealed(text: str) -> str:
    """A text of `to_json` with its seal."""
    return f'{text[:-1]},\n"{SEAL}":"{_sha256(text)}"}}'


def _unsealed(text: str) -> str:
    """The text that was sealed, where `_sealed` wrote this one."""
    return f"{text.rpartition(',')[0]}}}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _graph(content: dict[str, Any], complaint: str) -> Graph:
    version = content.get("format")
    if version == 1:
        saved = _upgraded(as_form(content, SavedGraph1, AttributionError, complaint), complaint)
    elif version == 2:
        saved = _upgraded(as_form(content, SavedGraph2, AttributionError, complaint), complaint)
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
    weights = torch.zeros(len(saved["rows"]), len(nodes))
    invariants = torch.full_like(weights, float("nan"))
    for place, row in enumerate(saved["rows"]):
        sources = torch.tensor([columns[id] for id in row["sources"]], dtype=torch.long)
        weights[place, sources] = torch.tensor(row["weights"], dtype=torch.float32)
        known = [float("nan") if one is None else one for one in row["invariants"]]
        invariants[place, sources] = torch.tensor(known, dtype=torch.float32)
    if bool(weights.isinf().any() or invariants.isinf().any()):
        raise AttributionError(f"{complaint}: a weight in it is too large for 32 bits.")
    return Graph(
        prompt=saved["prompt"],
        tokens=saved["tokens"],
        nodes=nodes,
        rows=[row["node"] for row in saved["rows"]],
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


def _upgraded(old: SavedGraph1 | SavedGraph2, complaint: str) -> SavedGraph:
    """A graph of format 1 or 2 in format 3."""
    content: dict[str, Any] = {**old}
    if old["format"] == 1:
        content["nodes"] = [{**node, "gradient_effect": node["free_effect"]} for node in old["nodes"]]
        content["provenance"] = old["made"]
    into: dict[int, dict[int, SavedEdge]] = {row["node"]: {} for row in old["rows"]}
    for edge in content.pop("edges"):
        if edge["target"] not in into:
            raise AttributionError(f"{complaint}: an edge leads to a node without a row.")
        into[edge["target"]][edge["source"]] = edge
    content["rows"] = [
        {
            **row,
            "sources": [*into[row["node"]]],
            "weights": [edge["weight"] for edge in into[row["node"]].values()],
            "invariants": [edge["invariant"] for edge in into[row["node"]].values()],
        }
        for row in old["rows"]
    ]
    return as_form(content | {"format": FORMAT}, SavedGraph, AttributionError, complaint)


def _inconsistency(saved: SavedGraph) -> str:
    """The first way in which the parts of a graph don't fit each other; empty where all fit."""
    nodes, rows = saved["nodes"], [row["node"] for row in saved["rows"]]
    ids, named = [node["id"] for node in nodes], {id for row in saved["rows"] for id in row["sources"]}
    length = len(saved["tokens"])
    wrong = {
        "it has another number of tokens than of their texts": length != len(saved["prompt"]) or not length,
        "its first node is not its target": not nodes or nodes[0]["kind"] != "target" or rows[:1] != ids[:1],
        "two of its nodes or rows have the same id": len(set(ids)) < len(ids) or len(set(rows)) < len(rows),
        "a row or edge names a node that is not there": not named.union(rows) <= set(ids),
        "a row has another number of weights than of sources": any(
            not len(row["sources"]) == len(row["weights"]) == len(row["invariants"]) for row in saved["rows"]
        ),
        "a row names a source twice": any(len(set(row["sources"])) < len(row["sources"]) for row in saved["rows"]),
        "a node lies outside the prompt": any(node["position"] >= length for node in nodes),
        "its target is neither a token nor a latent": bool(nodes)
        and nodes[0]["feature"] is None
        and not saved["provenance"]["target_tokens"],
        "a latent has no feature": any(node["kind"] == "latent" and not node["feature"] for node in nodes),
    }
    return next((words for words, is_so in wrong.items() if is_so), "")
