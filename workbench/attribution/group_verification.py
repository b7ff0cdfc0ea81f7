"""Supernodes tested as one: the predicted and the measured effect of ablating a group, beside random groups.

A group's prediction is the sum of its nodes' gradient effects, less what passes from one of them through another: that
one is gone already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.graph import Graph, Node
from workbench.attribution.parts import Transcoders
from workbench.attribution.supernodes import Supernodes
from workbench.attribution.verification import check_graph, measured_without, pearson
from workbench.core.checks import Natural, checked
from workbench.core.display import Tabular
from workbench.core.precision import in_float64
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class GroupVerification(Tabular):
    """Predicted and measured changes of a graph's target where groups of latents are ablated, each as one."""

    names: list[str]
    sizes: list[int]
    predicted: list[float]
    """By group: minus its first-order contribution to the target."""
    measured: list[float]
    """By group: the change of the target in the plain model."""
    random: list[list[float]]
    """By group: the changes by random groups of as many other latents of the graph."""
    pearson: float
    """Correlation of predicted and measured changes; NaN for fewer than three groups."""

    @property
    def shares(self) -> list[float]:
        """By group: the share of its random groups that change the target as much; NaN without any."""
        return [
            sum(abs(one) >= abs(change) for one in others) / len(others) if others else float("nan")
            for change, others in zip(self.measured, self.random, strict=True)
        ]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each group."""
        each = zip(self.names, self.sizes, self.predicted, self.measured, self.shares, strict=True)
        for name, size, predicted, measured, share in each:
            yield {"name": name, "size": size, "predicted": predicted, "measured": measured, "as_much": share}

    def _facts(self) -> Mapping[str, object]:
        return {"groups": len(self.names), "pearson": self.pearson}


@checked(AttributionError)
def verify_groups(
    model: LanguageModel,
    transcoders: Transcoders,
    graph: Graph,
    groups: Supernodes,
    *,
    controls: Natural = 8,
    seed: Natural = 0,
) -> GroupVerification:
    """The target's change where the latents of a group are ablated together, predicted and measured in the plain model.

    Args:
        model: the model of the graph.
        transcoders: the transcoders that the graph was computed with.
        graph: from `attribute` or `load_graph`; one that is not pruned knows what passes from node to node.
        groups: of latents, from `group_nodes` or by hand.
        controls: random groups of the same size beside each.
        seed: of what is drawn.

    Raises:
        AttributionError: another model or other transcoders than the graph's, no group, or a node that is no latent of
            the graph.
    """
    check_graph(model, transcoders, graph)
    latents = {node.id: node for node in graph.nodes if node.kind == "latent"}
    for name, ids in groups.groups.items():
        if strangers := [id for id in ids if id not in latents]:
            raise AttributionError(f"Node {strangers[0]} of {name[:80]!r} is not a latent of this graph.")
    chosen = {name: [latents[id] for id in dict.fromkeys(ids)] for name, ids in groups.groups.items() if ids}
    if not chosen:
        raise AttributionError("There is no supernode to test; group nodes first.")
    generator = torch.Generator().manual_seed(seed)
    every = [*chosen.values()]
    drawn = [[_draw(latents, group, generator) for _ in range(controls)] for group in every]
    flat = [group for many in drawn for group in many if group]
    changes = measured_without(model, transcoders, graph, [*every, *flat])
    rest = iter(changes[len(every) :])
    predicted = [predicted_change(graph, group) for group in every]
    measured = changes[: len(every)]
    return GroupVerification(
        names=[*chosen],
        sizes=[len(group) for group in every],
        predicted=predicted,
        measured=measured,
        random=[[next(rest) for group in many if group] for many in drawn],
        pearson=pearson(torch.tensor(predicted).double(), torch.tensor(measured).double()),
    )


def _draw(latents: Mapping[int, Node], group: Sequence[Node], generator: torch.Generator) -> list[Node]:
    """As many other latents, drawn at random; none where there are not enough."""
    inside = {node.id for node in group}
    others = [node for id, node in latents.items() if id not in inside]
    if len(others) < len(group):
        return []
    return [others[place] for place in torch.randperm(len(others), generator=generator)[: len(group)].tolist()]


def predicted_change(graph: Graph, group: Sequence[Node]) -> float:
    """The change of the target where latents are ablated together, to first order.

    Each latent takes its gradient effect with it, of which the share that it gets from other members counts with them.
    """
    members = {node.id for node in group}
    return -sum(node.gradient_effect * (1 - _from_others(graph, node, members)) for node in group)


def _from_others(graph: Graph, node: Node, members: set[int]) -> float:
    """The share of a latent's value that comes from other members, along paths that pass no further member."""
    if node.id not in graph.rows or len(members) == 1:
        return 0.0
    place = graph.rows.index(node.id)
    weights, inside = in_float64(graph.weights.cpu()), torch.tensor([one.id in members for one in graph.nodes])
    column = {one.id: number for number, one in enumerate(graph.nodes)}
    through: Tensor = weights[place].clone()
    total = graph.totals[place]
    for row in range(place + 1, len(graph.rows)):  # from late layers to early ones
        id = graph.rows[row]
        amount = float(through[column[id]])
        if id not in members and amount and graph.totals[row]:
            through = through + weights[row] * (amount / graph.totals[row])
    return float(through[inside].sum()) / total if total else 0.0
