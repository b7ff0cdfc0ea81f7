"""Graphs as JSON: our own, which opens again, and the one that Neuronpedia's graph viewer reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.attribution.frozen import AttributionError
from workbench.attribution.graph import FORMAT, Graph, Node
from workbench.core.files import replacing
from workbench.dictionaries.features import Feature


def to_json(graph: Graph) -> str:
    """A graph as text; prune it first, a whole one has up to a million edges."""
    return json.dumps(graph.to_dict(), indent=1, allow_nan=False)


def from_json(text: str) -> Graph:
    """The inverse of `to_json`; features in it name their dictionaries and do not hold them.

    Raises:
        AttributionError: not such a text.
    """
    try:
        said = json.loads(text)
        if said["format"] != FORMAT:
            raise AttributionError(f"This graph is in format {said['format']}; this version reads {FORMAT}.")
        nodes = [Node(**one | {"feature": one["feature"] and Feature.parse(one["feature"])}) for one in said["nodes"]]
        rows = [int(row["node"]) for row in said["rows"]]
        columns = {node.id: column for column, node in enumerate(nodes)}
        weights = torch.zeros(len(rows), len(nodes))
        invariants = torch.full_like(weights, float("nan"))
        for edge in said["edges"]:
            place = rows.index(edge["target"]), columns[edge["source"]]
            weights[place] = edge["weight"]
            if edge["invariant"] is not None:
                invariants[place] = edge["invariant"]
        return Graph(
            list(said["prompt"]),
            list(said["tokens"]),
            nodes,
            rows,
            weights,
            invariants,
            [float(row["scale"]) for row in said["rows"]],
            [float(row["read"]) for row in said["rows"]],
            dict(said["shares"]),
            dict(said["counts"]),
            dict(said["made"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, AttributionError):
            raise
        raise AttributionError(f"This is not a graph that was saved as JSON: {error}.") from error


def save_graph(graph: Graph, path: str | Path) -> None:
    """Write a graph to a JSON file, whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(to_json(graph))


def load_graph(path: str | Path) -> Graph:
    """Read what `save_graph` wrote; raises `AttributionError` if it can't."""
    try:
        return from_json(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise AttributionError(f"{path} can't be read: {error}.") from error


def to_neuronpedia(graph: Graph, slug: str, *, scan: str = "", pinned: Sequence[int] = ()) -> dict[str, Any]:
    """A graph in the form of Neuronpedia's graph viewer (schema 1), as plain data.

    MLPs without a transcoder have no kind of their own there and are shown as errors; the bias is left out.

    Args:
        graph: a pruned one.
        slug: its name in addresses.
        scan: the model's name there; the graph's model if empty.
        pinned: ids of nodes to pin.
    """
    names = {node.id: _name(graph, node) for node in graph.nodes if node.kind != "bias"}
    nodes = [_viewed(graph, node, names[node.id]) for node in graph.nodes if node.id in names]
    links = [
        {"source": names[edge.source], "target": names[edge.target], "weight": edge.weight}
        for edge in graph.edges
        if edge.source in names
    ]
    metadata = {
        "slug": slug,
        "scan": scan or str(graph.made.get("model", "")),
        "transcoder_list": [one["name"] for one in graph.made.get("transcoders", ())],
        "prompt_tokens": graph.prompt,
        "prompt": "".join(graph.prompt),
        "node_threshold": graph.made.get("pruned", {}).get("share"),
        "schema_version": 1,
    }
    view = {"pinnedIds": [names[id] for id in pinned if id in names], "supernodes": [], "linkType": "both"}
    return {"metadata": metadata, "qParams": view | {"clickedId": "", "sg_pos": ""}, "nodes": nodes, "links": links}


def _name(graph: Graph, node: Node) -> str:
    if node.kind == "latent" and node.feature is not None:
        return f"{node.layer}_{node.feature.index}_{node.position}"
    if node.kind == "embedding":
        return f"E_{graph.tokens[node.position]}_{node.position}"
    if node.kind == "target":
        return f"{node.layer + 1}_{_target_token(graph)}_{node.position}"
    return f"{node.layer}_-1_{node.position}"


def _viewed(graph: Graph, node: Node, name: str) -> dict[str, Any]:
    kind = {"latent": "cross layer transcoder", "embedding": "embedding", "target": "logit"}.get(
        node.kind, "mlp reconstruction error"
    )
    index = node.feature.index if node.feature is not None else -1
    feature = {"latent": (node.layer + index) * (node.layer + index + 1) // 2 + index, "embedding": node.position}
    words = name.rsplit("_", 1)
    return {
        "node_id": name,
        "feature": _target_token(graph) if node.kind == "target" else feature.get(node.kind, -1),
        "layer": {"embedding": "E", "target": str(node.layer + 1)}.get(node.kind, str(node.layer)),
        "ctx_idx": node.position,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": node.kind == "target",
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{words[0]}-{0 if node.kind == 'latent' else node.position}",
        "clerp": node.label,
        "influence": node.influence,
        "activation": node.value if node.kind == "latent" else None,
    }


def _target_token(graph: Graph) -> int:
    chosen = graph.made.get("target_tokens") or [-1]
    return int(chosen[0])
