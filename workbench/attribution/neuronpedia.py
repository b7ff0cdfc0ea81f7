"""Graphs in the form that Neuronpedia's graph viewer reads (schema 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import Graph, Node
from workbench.core.checks import checked


@checked(AttributionError)
def to_neuronpedia(graph: Graph, slug: str, *, scan: str = "", pinned: Sequence[int] = ()) -> dict[str, Any]:
    """A graph as the JSON content of Neuronpedia's graph viewer.

    The viewer has no kind for MLPs without a transcoder: they become reconstruction errors. The bias is left out. A
    difference of two logits stands as the logit of the first token. A latent as the target stands as the latent it is.

    Args:
        graph: a pruned graph.
        slug: the graph's name in addresses.
        scan: the model's name in the viewer; the graph's model if empty.
        pinned: ids of nodes to pin.

    Raises:
        AttributionError: a graph that was saved without the probability of its token.
    """
    names = {node.id: _name(graph, node) for node in graph.nodes if node.kind != "bias"}
    target = names[graph.target.id]
    names = {id: name for id, name in names.items() if id == graph.target.id or name != target}
    nodes = [_viewed(graph, node, names[node.id]) for node in graph.nodes if node.id in names]
    links = [
        {"source": names[edge.source], "target": names[edge.target], "weight": edge.weight}
        for edge in graph.edges
        if edge.source in names
    ]
    metadata = {
        "slug": slug,
        "scan": scan or str(graph.provenance.get("model", "")),
        "transcoder_list": [one["name"] for one in graph.provenance.get("transcoders", ())],
        "prompt_tokens": graph.prompt,
        "prompt": "".join(graph.prompt),
        "node_threshold": graph.provenance.get("pruned", {}).get("share"),
        "schema_version": 1,
    }
    view = {"pinnedIds": [names[id] for id in pinned if id in names], "supernodes": [], "linkType": "both"}
    return {"metadata": metadata, "qParams": view | {"clickedId": "", "sg_pos": ""}, "nodes": nodes, "links": links}


def _name(graph: Graph, node: Node) -> str:
    if node.feature is not None:
        return f"{node.layer}_{node.feature.index}_{node.position}"
    if node.kind == "embedding":
        return f"E_{graph.tokens[node.position]}_{node.position}"
    if node.kind == "target":
        return f"{node.layer + 1}_{_target_token(graph)}_{node.position}"
    return f"{node.layer}_-1_{node.position}"


def _viewed(graph: Graph, node: Node, name: str) -> dict[str, Any]:
    is_logit = node.kind == "target" and node.feature is None
    kind = {"embedding": "embedding", "target": "logit"}.get(node.kind, "mlp reconstruction error")
    feature, layer = {"embedding": node.position}.get(node.kind, -1), str(node.layer)
    if node.feature is not None:
        kind, index = "cross layer transcoder", node.feature.index
        feature = (node.layer + index) * (node.layer + index + 1) // 2 + index
    elif is_logit:
        feature, layer = _target_token(graph), str(node.layer + 1)
    words = name.rsplit("_", 1)
    return {
        "node_id": name,
        "feature": feature,
        "layer": "E" if node.kind == "embedding" else layer,
        "ctx_idx": node.position,
        "feature_type": kind,
        "token_prob": _probability(graph) if is_logit else 0.0,
        "is_target_logit": is_logit,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{words[0]}-{0 if node.feature is not None else node.position}",
        "clerp": node.label,
        "influence": node.influence,
        "activation": node.value if node.feature is not None else None,
    }


def _target_token(graph: Graph) -> int:
    return int(graph.provenance["target_tokens"][0])


def _probability(graph: Graph) -> float:
    """The model's probability of the target's token, or of the first of two."""
    known = graph.provenance.get("target_probabilities")
    if not known:
        raise AttributionError(
            "This graph was saved without the probability of its token, which the viewer shows; compute it again with "
            "attribute."
        )
    return float(known[0])
