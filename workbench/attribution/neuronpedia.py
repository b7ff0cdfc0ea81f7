"""Graphs in the form that circuit-tracer's and Neuronpedia's viewers read (schema 1).

Source: circuit-tracer 0.5.0, `frontend/graph_models.py`, and Neuronpedia's JSON schema of attribution graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import Graph, Node
from workbench.attribution.viewer_json import paired
from workbench.core.checks import Integer, checked


@checked(AttributionError)
def to_neuronpedia(
    graph: Graph | Sequence[Graph],
    slug: str,
    *,
    scan: str = "",
    pinned: Sequence[Integer] = (),
    supernodes: Mapping[str, Sequence[Integer]] | None = None,
    labels: Mapping[Integer, str] | None = None,
) -> dict[str, Any]:
    """A graph as the JSON content of circuit-tracer's and Neuronpedia's graph viewers.

    The viewers have no kind for MLPs without a transcoder: they become reconstruction errors. The bias is left out. A
    difference of two logits stands as the logit of the first token. A latent as the target stands as the latent it is.
    A node's `influence` is what the viewers prune by: the share of all influence that the node has together with those
    of more influence.

    Args:
        graph: a pruned graph, or several of one prompt that differ in their logit.
        slug: the graph's name in addresses.
        scan: the model's name in the viewer; the graph's model if empty.
        pinned: ids of nodes to pin.
        supernodes: groups of nodes, ids by the group's name; None for those that the first graph keeps.
        labels: labels of nodes by id, in place of their own; a target's is for the first graph's.

    Raises:
        AttributionError: no graph, graphs of different prompts, models or transcoders, several of which one explains
            a latent or which explain one token twice, or a graph that was saved without the probability of its token.
    """
    graphs = [graph] if isinstance(graph, Graph) else list(graph)
    _check(graphs)
    names = _names(graphs)
    labels, links = labels or {}, _links(graphs, names)
    nodes = {}
    for place, one in enumerate(graphs):
        for node in one.nodes:
            if (name := names.get((place if node is one.target else -1, node.id))) and name not in nodes:
                own = None if place and node is one.target else labels.get(node.id)  # every graph's target has one id
                nodes[name] = _viewed(one, node, name, own)
                nodes[name]["is_target_logit"] = place == 0 and nodes[name]["feature_type"] == "logit"
    for name, influence in _cumulative(graphs, names).items():
        nodes[name]["influence"] = influence
    by_id = {id: name for (place, id), name in names.items() if place <= 0}
    chosen = graphs[0].provenance.get("supernodes", {}) if supernodes is None else supernodes
    groups = {name: [by_id[id] for id in ids if id in by_id] for name, ids in chosen.items()}
    first = graphs[0]
    metadata = {
        "slug": slug,
        "scan": scan or str(first.provenance.get("model", "")),
        "transcoder_list": [one["name"] for one in first.provenance.get("transcoders", ())],
        "prompt_tokens": first.prompt,
        "prompt": "".join(first.prompt),
        "node_threshold": max(map(_share, graphs)),
        "schema_version": 1,
    }
    view = {
        "pinnedIds": [by_id[id] for id in pinned if id in by_id],
        "supernodes": [[name, *members] for name, members in groups.items() if members],
    }
    view |= {"linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": view, "nodes": [*nodes.values()], "links": links}


def _check(graphs: list[Graph]) -> None:
    """Raise `AttributionError` unless the graphs are of one prompt and of different logits."""
    if not graphs:
        raise AttributionError("There is no graph to write; give at least one.")
    first = graphs[0]
    for one in graphs[1:]:
        for what in ("model_hash", "transcoders", "mlps", "first"):
            if one.tokens != first.tokens or one.provenance[what] != first.provenance[what]:
                raise AttributionError(
                    "The graphs are of different prompts, models, transcoders or settings, so they don't make one; "
                    "give graphs that differ in their target."
                )
    if len(graphs) > 1 and any(one.target.feature is not None for one in graphs):
        raise AttributionError("Several graphs make one where each explains a logit; write that of a latent alone.")
    logits = [(_target_token(one), one.target.position) for one in graphs if one.target.feature is None]
    if len(set(logits)) < len(logits):
        raise AttributionError("Two of the graphs explain the same token at the same position; give one of them.")


def _names(graphs: list[Graph]) -> dict[tuple[int, int], str]:
    """The viewer's name of each node, by id and, for a graph's target, by the graph's place; -1 for other nodes.

    circuit-tracer calls the error of layer L at position P `0_L_P`, which is also its name of latent L of layer 0. An
    error that a latent's name is taken from is called otherwise.
    """
    names: dict[tuple[int, int], str] = {}
    for place, graph in enumerate(graphs):
        names[place, graph.target.id] = _name(graph, graph.target)
        for node in graph.nodes[1:]:
            if node.kind not in ("bias", "error", "mlp"):
                names.setdefault((-1, node.id), _name(graph, node))
    targets = {name for (place, _), name in names.items() if place >= 0}
    names = {key: name for key, name in names.items() if key[0] >= 0 or name not in targets}
    taken = {*names.values()}
    for graph in graphs:
        for node in graph.nodes[1:]:
            if node.kind in ("error", "mlp") and (-1, node.id) not in names:
                theirs = f"0_{node.layer}_{node.position}"
                names[-1, node.id] = theirs if theirs not in taken else f"{node.layer}_{node.kind}_mlp_{node.position}"
                taken.add(names[-1, node.id])
    return names


def _name(graph: Graph, node: Node) -> str:
    if node.feature is not None:
        return f"{node.layer}_{node.feature.index}_{node.position}"
    if node.kind == "embedding":
        return f"E_{graph.tokens[node.position]}_{node.position}"
    return f"{node.layer + 1}_{_target_token(graph)}_{node.position}"


def _links(graphs: list[Graph], names: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """All links, each once: an edge between two latents is the same in graphs of several logits."""
    links: dict[tuple[str, str], float] = {}
    for place, graph in enumerate(graphs):
        for edge in graph.edges:
            source = names.get((-1, edge.source))
            target = names.get((place if edge.target == graph.target.id else -1, edge.target))
            if source and target:
                links.setdefault((source, target), edge.weight)
    return [{"source": source, "target": target, "weight": weight} for (source, target), weight in links.items()]


def _cumulative(graphs: list[Graph], names: dict[tuple[int, int], str]) -> dict[str, float]:
    """For each node the share of all influence that it has with those of more influence, by the viewer's name.

    Several logits count with their probabilities.
    """
    chances = [1.0] if len(graphs) == 1 else [_probability(one) for one in graphs]
    sums: dict[str, float] = {}
    for graph, chance in zip(graphs, chances, strict=True):
        for node in graph.nodes[1:]:
            if name := names.get((-1, node.id)):
                sums[name] = sums.get(name, 0.0) + chance * node.influence / sum(chances)
    whole, so_far, out = sum(sums.values()) or 1.0, 0.0, {}
    share = max(map(_share, graphs))
    for name in sorted(sums, key=lambda name: -sums[name]):
        so_far += sums[name]
        out[name] = min(so_far / whole, 1.0) * share
    return out


def _share(graph: Graph) -> float:
    return float(graph.provenance.get("pruned", {}).get("share", 1.0))


def _viewed(graph: Graph, node: Node, name: str, label: str | None) -> dict[str, Any]:
    is_logit = node.kind == "target" and node.feature is None
    kind, layer, label = "mlp reconstruction error", str(node.layer), node.label if label is None else label
    feature, own = -1, f"{node.layer}_{node.position}-0"
    if node.feature is not None:
        kind, index = "cross layer transcoder", node.feature.index
        feature, own = paired(node.layer, index), f"{node.layer}_{index}-0"
    elif is_logit:
        kind, feature, layer = "logit", _target_token(graph), str(node.layer + 1)
        own = f"L_{feature}-{node.position}"
        label = f'Output "{label}" (p={_probability(graph):.3f})'  # viewers read the text and the number from it
    elif node.kind == "embedding":
        kind, feature, layer = "embedding", node.position, "E"
        own = f"E_{graph.tokens[node.position]}-{node.position}"
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": kind,
        "token_prob": _probability(graph) if is_logit else 0.0,
        "is_target_logit": is_logit,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": own,
        "clerp": label,
        "influence": None,
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
