"""Graphs of features: who contributes how much to whom, on one prompt.

Nodes write into the residual stream, or read it (the target, and latents that were expanded); an edge says how much of
what its target read came from its source. Influence follows Ameisen et al., "Circuit tracing" (2025): absolute weights,
each target's normed to 1, along all paths to the graph's target.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from workbench.attribution.frozen import AttributionError
from workbench.dictionaries.features import Feature

FORMAT = 1
KINDS = ("target", "latent", "error", "mlp", "embedding", "bias")


@dataclass(frozen=True)
class Node:
    """One thing that writes into the residual stream at a position, or the target."""

    id: int
    """Unique within a graph, and kept when it is pruned."""
    kind: str
    """`target`; `latent`: of a transcoder; `error`: what an MLP writes and its transcoder does not explain; `mlp`: what
    an MLP without a transcoder writes (but for what passes it linearly); `embedding`: what enters block 0; `bias`."""
    layer: int
    """-1 for embeddings and the bias, the number of layers for a target behind the last."""
    position: int
    """-1 for the bias."""
    value: float
    """A latent's activation, and the target's value; 1 for all others, which are there or not."""
    feature: Feature | None = None
    label: str = ""
    """What people read."""
    influence: float = 0.0
    """Share of all absolute influence on the target that goes through it, along all paths of the whole graph."""
    effect: float = 0.0
    """What it adds to the target along all paths of the whole graph, if each latent keeps in step with what it reads:
    attention patterns and norm scales stay as they are."""
    gradient_effect: float = 0.0
    """What it adds to the target to first order if everything responds, attention and norms too: its value times the
    target's gradient in the model as it is. The change to expect when it is taken out is minus this."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return vars(self) | {"feature": None if self.feature is None else str(self.feature)}


@dataclass(frozen=True)
class Edge:
    """How much of what `target` reads comes from `source`: `weight = value of the source * factor`."""

    source: int
    target: int
    weight: float
    factor: float
    """What one unit of the source adds, by all ways: the residual stream, attention (with the prompt's patterns) and
    transcoders' linear paths, under the prompt's norm scales."""
    invariant: float | None
    """The direct way's product of weights alone, decoder row times norm gain times encoder row, the same on every
    prompt; None where the source is not a latent. At one position `value * scale * invariant` is the direct way's share
    of the weight; from another position there is no direct way."""
    scale: float
    """The norm's scale at the target, on this prompt."""

    to_dict = asdict


@dataclass(frozen=True)
class Graph:
    """Features behind one prediction; made by `attribute`.

    Weights are exact: over all sources of the whole graph, a row's weights sum to what its node read.
    """

    prompt: list[str]
    """The text of each token."""
    tokens: list[int]
    nodes: list[Node]
    """In the order of the columns; the target is the first."""
    rows: list[int]
    """The ids of those nodes whose sources were traced, the target first, then from late layers to early ones."""
    weights: Tensor = field(repr=False)
    """`[rows, nodes]`; 0 where there is no edge."""
    invariants: Tensor = field(repr=False)
    """`[rows, nodes]`; see `Edge.invariant`; NaN where the source is not a latent."""
    scales: list[float] = field(repr=False)
    """The norm's scale where each row reads."""
    totals: list[float] = field(repr=False)
    """What each row's node read, measured in the model and not in the graph."""
    shares: dict[str, float]
    """The target's absolute influence by kind of source, where paths end: a latent's is that of latents whose sources
    were not traced. Sums to 1."""
    counts: dict[str, int]
    """Nodes of each kind in the whole graph."""
    made: dict[str, Any] = field(default_factory=dict)
    """Where it comes from: model, transcoders, settings."""

    @property
    def target(self) -> Node:
        """What the graph explains."""
        return self.nodes[0]

    def node(self, id: int) -> Node:
        """The node of this id; raises `KeyError` if the graph has none."""
        return self._by_id[id]

    @cached_property
    def _by_id(self) -> dict[int, Node]:
        return {node.id: node for node in self.nodes}

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def edges(self) -> list[Edge]:
        """All edges, by the size of their weights within each target."""
        return list(self.edges_of())

    def edges_of(self, target: int | None = None) -> Iterator[Edge]:
        """Edges, strongest first, of one target by its id or of all."""
        for row, id in enumerate(self.rows):
            if target not in (None, id):
                continue
            weights = self.weights[row]
            for column in weights.abs().argsort(descending=True).tolist():
                weight = float(weights[column])
                if weight == 0:
                    break
                source, invariant = self.nodes[column], float(self.invariants[row, column])
                factor = weight / source.value if source.kind == "latent" else weight
                known = None if math.isnan(invariant) else invariant
                yield Edge(source.id, id, weight, factor, known, self.scales[row])

    def completeness(self) -> list[float]:
        """For each row |sum of its weights - what was read| / |what was read|; for a whole graph, not a pruned one."""
        sums = self.weights.double().sum(1).tolist()
        return [abs(made - read) / max(abs(read), 1e-12) for made, read in zip(sums, self.totals, strict=True)]

    def prune(
        self,
        share: float = 0.8,
        edges: float = 0.95,
        *,
        keep: tuple[int, ...] = (),
        kinds: Collection[str] = KINDS,
    ) -> Graph:
        """The graph of the most influential nodes and edges.

        Args:
            share: keep the most influential nodes that together have this share of all nodes' influence.
            edges: of the edges between those, the most influential that together have this share.
            keep: ids of nodes to keep in any case.
            kinds: keep only nodes of these kinds, and take shares of the influence of these.

        Raises:
            AttributionError: a share outside 0 to 1, or an unknown kind.
        """
        for what, value in (("share", share), ("edges", edges)):
            if not 0 < value <= 1:
                raise AttributionError(f"{what} is a share above 0 and up to 1, not {value!r}.")
        if strange := [kind for kind in kinds if kind not in KINDS]:
            raise AttributionError(f"There are no nodes of the kind {strange[0]!r}; there are {', '.join(KINDS)}.")
        sizes = {node.id: node.influence for node in self.nodes[1:] if node.kind in kinds}
        kept = {self.target.id, *keep} | _heaviest(sizes, share)
        masked = self._only(kept, self.weights)
        influence = {self.target.id: 1.0} | {node.id: node.influence for node in self.nodes[1:]}
        flows = {}
        for row, id in enumerate(self.rows):
            total = float(self.weights[row].abs().sum()) or 1.0
            for column in masked[row].nonzero()[:, 0].tolist():
                flows[row, column] = influence[id] * abs(float(masked[row, column])) / total
        strong = _heaviest(flows, edges)
        cut = torch.zeros_like(masked)
        for place in strong:
            cut[place] = masked[place]
        column_of = {node.id: column for column, node in enumerate(self.nodes)}
        reached = {self.target.id}
        for row, id in enumerate(self.rows):  # from late to early: a row's own readers come before it
            if id not in reached:
                cut[row] = 0
                continue
            reached |= {self.nodes[column].id for column in cut[row].nonzero()[:, 0].tolist()}
        reached |= {id for id in keep if id in column_of}
        columns = [column_of[node.id] for node in self.nodes if node.id in reached]
        rows = [row for row, id in enumerate(self.rows) if id in reached]
        return replace(
            self,
            nodes=[self.nodes[column] for column in columns],
            rows=[self.rows[row] for row in rows],
            weights=cut[rows][:, columns],
            invariants=self.invariants[rows][:, columns],
            scales=[self.scales[row] for row in rows],
            totals=[self.totals[row] for row in rows],
            made=self.made | {"pruned": {"share": share, "edges": edges, "kinds": sorted(kinds)}},
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data; meant for pruned graphs, since a whole one has a million edges."""
        rows = zip(self.rows, self.scales, self.totals, strict=True)
        return {
            "format": FORMAT,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "nodes": [node.to_dict() for node in self.nodes],
            "rows": [{"node": id, "scale": scale, "read": total} for id, scale, total in rows],
            "edges": [edge.to_dict() for edge in self.edges],
            "shares": self.shares,
            "counts": self.counts,
            "made": self.made,
        }

    def _only(self, kept: set[int], weights: Tensor) -> Tensor:
        """Weights between kept nodes, 0 for all others."""
        columns = torch.tensor([node.id in kept for node in self.nodes])
        rows = torch.tensor([id in kept for id in self.rows])
        return weights * columns * rows[:, None]


def influences(weights: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """How much absolute influence passes each column, and how much of it is not passed on; the target's is 1.

    Args:
        weights: `[rows, columns]`; rows in an order in which each comes behind all that read it.
        rows: the column of each row's own node.
    """
    total = weights.new_zeros(weights.shape[1])
    total[rows[0]] = 1
    for row, column in enumerate(rows):
        size = weights[row].abs()
        if float(size.sum()) > 0:
            total += total[column] * size / size.sum()
    ending = total.clone()
    ending[rows] = 0
    return total, ending


def effects(weights: Tensor, rows: list[int], values: Tensor) -> Tensor:
    """What each column adds to the target along all paths, `[columns]`; arguments as in `influences`.

    Args:
        weights: `[rows, columns]`.
        rows: the column of each row's own node.
        values: `[columns]`, each node's value.
    """
    slope = weights.new_zeros(weights.shape[1])  # the target's change for one unit of each
    slope[rows[0]] = 1
    for row, column in enumerate(rows):
        slope += slope[column] * weights[row] / values
    return slope * values


def _heaviest(sizes: dict[Any, float], share: float) -> set[Any]:
    """The keys of the largest values that together have this share of the sum."""
    wanted, sum_, found = share * sum(sizes.values()), 0.0, set()
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sum_ >= wanted or sizes[key] <= 0:
            break
        sum_ += sizes[key]
        found.add(key)
    return found
