"""Supernodes: groups of a graph's latents that are alike in label, direction and edges; a person changes them by hand.

Grouping nodes of a graph by what they have in common follows Ameisen et al., "Circuit tracing" (2025), who do it by
hand. Here groups begin with average-linkage clustering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import Graph, Node
from workbench.attribution.parts import Transcoders, transcoders_by_layer
from workbench.core.checks import Integer, Positive, Share, checked
from workbench.core.display import Tabular
from workbench.core.type_words import shown
from workbench.model.language_model import LanguageModel

LONGEST = 200
"""Characters of a name."""


@dataclass(frozen=True)
class Supernodes(Tabular):
    """Groups of a graph's nodes by name; no node is in two of them."""

    groups: Mapping[str, list[int]]
    """Ids of the nodes of each group."""

    def __len__(self) -> int:
        return len(self.groups)

    @checked(AttributionError)
    def rename(self, name: str, new: str) -> Supernodes:
        """The same with another name of a group.

        Raises:
            AttributionError: there is no such group, or one of the new name.
        """
        self._check(name)
        _check_new(new, self.groups.keys() - {name})
        return Supernodes({new if one == name else one: ids for one, ids in self.groups.items()})

    @checked(AttributionError)
    def merge(self, names: Sequence[str], new: str) -> Supernodes:
        """The same with several groups as one, in the place of the first.

        Raises:
            AttributionError: no group, one that there is not, or another one of the new name.
        """
        for name in names:
            self._check(name)
        if not names:
            raise AttributionError("There is no supernode to merge; name some.")
        _check_new(new, self.groups.keys() - {*names})
        together = [id for name in dict.fromkeys(names) for id in self.groups[name]]
        merged: dict[str, list[int]] = {}
        for one, ids in self.groups.items():
            if one not in names:
                merged[one] = ids
            elif new not in merged:
                merged[new] = together
        return Supernodes(merged)

    @checked(AttributionError)
    def split(self, name: str, nodes: Sequence[Integer], new: str) -> Supernodes:
        """The same with some nodes of a group as a group of their own, the last.

        Raises:
            AttributionError: no such group, a node that is not in it, none or all of its nodes, or a taken name.
        """
        self._check(name)
        _check_new(new, self.groups.keys())
        strangers = [id for id in nodes if id not in self.groups[name]]
        rest = [id for id in self.groups[name] if id not in nodes]
        if strangers or not nodes or not rest:
            raise AttributionError(
                f"A part of {shown(name)} are some of its nodes {', '.join(map(str, self.groups[name]))}, not all."
            )
        return Supernodes({**self.groups, name: rest, new: list(dict.fromkeys(nodes))})

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each group."""
        for name, ids in self.groups.items():
            yield {"name": name, "size": len(ids), "nodes": list(ids)}

    def _check(self, name: str) -> None:
        if name not in self.groups:
            raise AttributionError(f"There is no supernode {shown(name)}.")

    def _facts(self) -> Mapping[str, object]:
        return {"supernodes": len(self.groups), "nodes": sum(map(len, self.groups.values()))}


def _check_new(name: str, taken: Any) -> None:
    if not name.strip() or len(name) > LONGEST:
        raise AttributionError(f"A supernode's name has 1 to {LONGEST} characters, not {shown(name)}.")
    if name in taken:
        raise AttributionError(f"There is a supernode {shown(name)} already; choose another name.")


@checked(AttributionError)
def group_nodes(
    model: LanguageModel,
    transcoders: Transcoders,
    graph: Graph,
    labels: Mapping[Integer, str] | None = None,
    *,
    least: Share = 0.3,
    most: Positive = 60,
) -> Supernodes:
    """Groups of the latents of a graph with the largest gradient effects.

    How alike two latents are is the mean of what is known: the words that their labels share, divided by all their
    words; the cosine of their directions; the cosine of their edges, in and out. Negative cosines count as 0. Groups
    with the largest mean likeness are joined as long as it is at least `least`.

    Args:
        model: the model of the graph.
        transcoders: the transcoders that the graph was computed with.
        graph: from `attribute` or `load_graph`.
        labels: labels of nodes by id, such as those of an index's `names`.
        least: the least mean likeness of the latents of two groups that are joined.
        most: number of latents.

    Raises:
        AttributionError: a layer without a transcoder, no latent, or a number out of range.
    """
    coders = transcoders_by_layer(model, transcoders)
    nodes = sorted((one for one in graph.nodes if one.kind == "latent"), key=lambda one: -abs(one.gradient_effect))
    nodes = nodes[:most]
    if not nodes:
        raise AttributionError("There is no latent to group in this graph.")
    if strange := [one for one in nodes if one.layer not in coders or one.feature is None]:
        raise AttributionError(f"The graph has a latent in layer {strange[0].layer}, for which it has no transcoder.")
    rows = []
    for node in nodes:
        assert node.feature is not None
        index = torch.tensor([node.feature.index], device=model.device)
        rows.append(coders[node.layer].rows(index)[0][0].float().cpu())
    likeness = _likeness(graph, nodes, torch.stack(rows), labels or {})
    names: dict[str, list[int]] = {}
    for places in _clusters(likeness, least):
        members = [nodes[place] for place in places]
        name = _name(members, labels or {})
        while name in names:
            name += "'"
        names[name] = [one.id for one in members]
    return Supernodes(names)


def _likeness(graph: Graph, nodes: Sequence[Node], directions: Tensor, labels: Mapping[int, str]) -> Tensor:
    """How alike each two nodes are, `[nodes, nodes]`."""
    unit = normalize(directions, dim=-1)
    parts, known = [(unit @ unit.T).clamp(min=0)], [torch.ones(len(nodes), len(nodes))]
    column = {node.id: place for place, node in enumerate(graph.nodes)}
    places = [column[node.id] for node in nodes]
    row = {id: place for place, id in enumerate(graph.rows)}
    weights = graph.weights.float().cpu()
    out = normalize(weights[:, places].T, dim=-1)
    into = torch.stack([weights[row[node.id]] if node.id in row else torch.zeros(len(graph.nodes)) for node in nodes])
    edges = torch.cat([out, normalize(into, dim=-1)], -1)
    parts.append((normalize(edges, dim=-1) @ normalize(edges, dim=-1).T).clamp(min=0))
    known.append(torch.ones(len(nodes), len(nodes)))
    words = [{*labels.get(node.id, "").casefold().split()} for node in nodes]
    shared = [[len(a & b) / max(len(a | b), 1) for b in words] for a in words]
    parts.append(torch.tensor(shared))
    known.append(torch.tensor([[float(bool(a) and bool(b)) for b in words] for a in words]))
    counted = torch.stack(known)
    return (torch.stack(parts) * counted).sum(0) / counted.sum(0)


def _clusters(likeness: Tensor, least: float) -> list[list[int]]:
    """Average-linkage clusters, in the order of their first members."""
    groups = [[place] for place in range(len(likeness))]
    sums = likeness.clone().double()  # over pairs of two groups
    while len(groups) > 1:
        sizes = torch.tensor([len(group) for group in groups]).double()
        means = (sums / (sizes[:, None] * sizes)).fill_diagonal_(-1)
        best = int(means.argmax())
        one, two = sorted(divmod(best, len(groups)))
        if means[one, two] < least:
            break
        groups[one] += groups.pop(two)
        sums[one] += sums[two]
        sums[:, one] += sums[:, two]
        kept = [place for place in range(len(sums)) if place != two]
        sums = sums[kept][:, kept]
    return groups


def _name(members: Sequence[Node], labels: Mapping[int, str]) -> str:
    """The label of the member with the largest effect, and how many others there are."""
    first = max(members, key=lambda one: abs(one.gradient_effect))
    name = (labels.get(first.id) or first.label)[: LONGEST // 2].strip() or str(first.id)
    return name if len(members) == 1 else f"{name} and {len(members) - 1} more"


@checked(AttributionError)
def with_supernodes(graph: Graph, groups: Supernodes) -> Graph:
    """The graph with groups of its nodes, which its file keeps; nodes that it does not have are left out.

    Raises:
        AttributionError: a node in two groups, or an empty or too long name.
    """
    for name in groups.groups:
        _check_new(name, ())
    known = {node.id for node in graph.nodes}
    every = [id for ids in groups.groups.values() for id in ids]
    if len(every) > len({*every}):
        raise AttributionError("A node is in two supernodes; leave it in one.")
    kept = {name: [id for id in ids if id in known] for name, ids in groups.groups.items()}
    return replace(
        graph, provenance=graph.provenance | {"supernodes": {name: ids for name, ids in kept.items() if ids}}
    )


@checked(AttributionError)
def supernodes_of(graph: Graph) -> Supernodes:
    """The groups that a graph keeps; none where it has none."""
    return Supernodes({name: list(ids) for name, ids in graph.provenance.get("supernodes", {}).items()})
