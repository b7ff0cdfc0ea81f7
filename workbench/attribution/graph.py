"""Attribution graphs: how much each feature contributes to others and to the target, on one prompt.

A node writes into the residual stream or reads it (the target, and latents whose sources were traced). An edge's weight
is the part of its target's value that comes from its source. Influence follows Ameisen et al., "Circuit tracing"
(2025): absolute weights, normed to a sum of 1 for each target, along all paths to the graph's target.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from annotated_types import Gt, Le
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.core.checks import Integer, Number, checked
from workbench.core.display import Rows, Shown, Tabular, record_of
from workbench.core.precision import in_float64
from workbench.dictionaries.features import Feature

if TYPE_CHECKING:
    from workbench.figures.common import Figure

FORMAT = 3
Kind = Literal["target", "latent", "error", "mlp", "embedding", "bias"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PositiveShare = Annotated[Number, Gt(0), Le(1)]


@dataclass(frozen=True)
class Node(Shown):
    """A vector that is written into the residual stream at a position, or the target."""

    id: int
    """Unique within a graph; pruning keeps it."""
    kind: Kind
    """`target`; `latent`: of a transcoder; `error`: an MLP's output minus its transcoder's reconstruction; `mlp`: the
    output of an MLP without a transcoder (minus its linear part, where gradients pass it); `embedding`: the input of
    block 0; `bias`: all biases together."""
    layer: int
    """-1 for embeddings and the bias, the number of layers for a target behind the last."""
    position: int
    """-1 for the bias."""
    value: float
    """A latent's activation, the target's value, and 1 for all others."""
    feature: Feature | None = None
    label: str = ""
    """The name to show."""
    influence: float = 0.0
    """Share of all absolute influence on the target that passes this node, along all paths of the whole graph."""
    effect: float = 0.0
    """Its contribution to the target along all paths of the whole graph: attention patterns and norm scales are
    constants, latents respond linearly."""
    gradient_effect: float = 0.0
    """Its contribution to the target to first order where everything responds, attention and norms too: its value times
    the target's gradient in the model itself. Ablating the node is expected to change the target by minus this."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return vars(self) | {"feature": None if self.feature is None else str(self.feature)}


@dataclass(frozen=True)
class Edge(Shown):
    """The part of `target`'s value that comes from `source`: `weight = value of the source * factor`."""

    source: int
    target: int
    weight: float
    factor: float
    """The contribution of one unit of the source along all paths: the residual stream, attention (with the prompt's
    patterns) and transcoders' linear paths, with the prompt's norm scales."""
    invariant: float | None
    """The direct path's product of weights alone, decoder row times norm gain times encoder row: the same on every
    prompt. None where the source is not a latent. Where both nodes have the same position, `value * scale * invariant`
    is the direct path's share of the weight, times the scale of a norm between the source and the stream; between
    positions there is no direct path."""
    scale: float
    """The norm's scale at the target, on this prompt."""

    to_dict = asdict


@dataclass(frozen=True)
class Graph(Tabular):
    """The attribution graph of one prediction, from `attribute`.

    Weights are exact: over all sources of the whole graph, a row's weights sum to its node's value.
    """

    prompt: list[str]
    """The text of each token."""
    tokens: list[int]
    nodes: list[Node]
    """In the order of the columns; the target is the first."""
    rows: list[int]
    """Ids of the nodes whose sources were traced: the target, then latents from late layers to early ones."""
    weights: Tensor = field(repr=False)
    """`[rows, nodes]`; 0 where there is no edge."""
    invariants: Tensor = field(repr=False)
    """`[rows, nodes]`; see `Edge.invariant`; NaN where the source is not a latent."""
    scales: list[float] = field(repr=False)
    """For each row the norm's scale at its position."""
    totals: list[float] = field(repr=False)
    """For each row the value of its node, measured in the model and not in the graph."""
    shares: dict[str, float]
    """The target's absolute influence by the kind of node where paths end; for latents, those whose sources were not
    traced. Sums to 1."""
    counts: dict[str, int]
    """Nodes of each kind in the whole graph."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, transcoders and settings."""

    @property
    def target(self) -> Node:
        """The node that the graph explains."""
        return self.nodes[0]

    @checked(AttributionError)
    def node(self, id: int) -> Node:
        """The node of this id; raises `AttributionError` if the graph has none."""
        if id not in self._by_id:
            raise AttributionError(f"The graph has no node {id}.")
        return self._by_id[id]

    @cached_property
    def _by_id(self) -> dict[int, Node]:
        return {node.id: node for node in self.nodes}

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def edges(self) -> Rows[Edge]:
        """All edges, for each target the strongest first."""
        return Rows(self.edges_of())

    @checked(AttributionError)
    def edges_of(self, target: int | None = None) -> Iterator[Edge]:
        """Edges into one target, by its id, or into all; for each target the strongest first.

        Raises:
            AttributionError: the graph has no node of this id.
        """
        if target is not None:
            self.node(target)
        for row, id in enumerate(self.rows):
            if target not in (None, id):
                continue
            weights = self.weights[row]
            for column in weights.abs().argsort(descending=True).tolist():
                if float(weights[column]) == 0:
                    break
                yield self._edge(row, column)

    def _edge(self, row: int, column: int) -> Edge:
        """The edge that a weight stands for."""
        weight, source, invariant = (
            float(self.weights[row, column]),
            self.nodes[column],
            float(self.invariants[row, column]),
        )
        factor = weight / source.value if source.kind == "latent" else weight
        known = None if math.isnan(invariant) else invariant
        return Edge(source.id, self.rows[row], weight, factor, known, self.scales[row])

    @checked(AttributionError)
    def edges_from(self, source: int) -> list[Edge]:
        """Edges out of one source, by its id, the strongest first.

        Raises:
            AttributionError: the graph has no node of this id.
        """
        column = self.nodes.index(self.node(source))
        rows = self.weights[:, column].abs().argsort(descending=True).tolist()
        return [self._edge(row, column) for row in rows if float(self.weights[row, column])]

    def completeness(self) -> list[float]:
        """For each row |sum of its weights - its node's value| / |its node's value|; of a graph that is not pruned."""
        sums = in_float64(self.weights).sum(1).tolist()
        return [abs(sum_ - read) / max(abs(read), 1e-12) for sum_, read in zip(sums, self.totals, strict=True)]

    @checked(AttributionError)
    def prune(
        self,
        share: PositiveShare = 0.8,
        edges: PositiveShare = 0.95,
        *,
        keep: Collection[Integer] = (),
        kinds: Collection[Kind] = KINDS,
    ) -> Graph:
        """The graph of the most influential nodes and edges.

        Args:
            share: the nodes kept are the most influential ones that together have this share of all nodes' influence.
            edges: of the edges into each of them, the strongest that together have this share of the absolute weight
                are kept, so that chains of latents stay beside the edges into the target.
            keep: ids of further nodes to keep.
            kinds: kinds of nodes to keep; shares are of the influence of these kinds.

        Raises:
            AttributionError: a share that is not above 0 and up to 1, or an unknown kind.
        """
        sizes = {node.id: node.influence for node in self.nodes[1:] if node.kind in {*kinds}}
        kept = {self.target.id, *keep} | heaviest(sizes, share)
        masked = self._only(kept, self.weights)
        cut = torch.zeros_like(masked)
        for row in range(len(self.rows)):
            columns = masked[row].nonzero()[:, 0].tolist()
            strong = heaviest(dict(zip(columns, masked[row, columns].abs().tolist(), strict=True)), edges)
            cut[row, [*strong]] = masked[row, [*strong]]
        column_of = {node.id: column for column, node in enumerate(self.nodes)}
        reached = {self.target.id}
        for row, id in enumerate(self.rows):  # from late layers to early ones: a row's readers come before it
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
            provenance=self.provenance | {"pruned": {"share": share, "edges": edges, "kinds": sorted(kinds)}},
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each node; `edges` is the table of the edges."""
        for node in self.nodes:
            token = self.prompt[node.position] if 0 <= node.position < len(self.prompt) else ""
            yield record_of(node) | {"token": token}

    def figure(self) -> Figure:
        """The graph over positions and layers; of a graph that was not pruned the most influential part."""
        from workbench.figures.attribution import attribution_graph

        whole = "pruned" not in self.provenance
        return attribution_graph(self.prune() if whole else self)

    def _facts(self) -> Mapping[str, object]:
        return {
            "prompt": "".join(self.prompt),
            "target": self.target.label,
            "nodes": self.counts,
            "shown nodes": len(self.nodes),
            "edges": int((self.weights != 0).sum()),
            "shares": self.shares,
        }

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, in format 3: each row has the ids of its sources, their weights and invariants.

        Weights and invariants have the nine digits that state a float32.
        """
        return {
            "format": FORMAT,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "nodes": [node.to_dict() for node in self.nodes],
            "rows": [self._row(row) for row in range(len(self.rows))],
            "shares": self.shares,
            "counts": self.counts,
            "provenance": self.provenance,
        }

    def _row(self, row: int) -> dict[str, Any]:
        columns = self.weights[row].nonzero()[:, 0]
        invariants = self.invariants[row, columns].tolist()
        return {
            "node": self.rows[row],
            "scale": self.scales[row],
            "read": self.totals[row],
            "sources": [self.nodes[column].id for column in columns.tolist()],
            "weights": [float(f"{one:.9g}") for one in self.weights[row, columns].tolist()],
            "invariants": [None if math.isnan(one) else float(f"{one:.9g}") for one in invariants],
        }

    def _only(self, kept: set[int], weights: Tensor) -> Tensor:
        """Weights between kept nodes, and 0 for all others."""
        columns = torch.tensor([node.id in kept for node in self.nodes])
        rows = torch.tensor([id in kept for id in self.rows])
        return weights * columns * rows[:, None]


def influences(weights: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """The absolute influence on the target that passes each column, and the part of it that ends there: `[columns]`.

    The target's own influence is 1.

    Args:
        weights: `[rows, columns]`; each row comes after all rows that read its node.
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
    """The contribution of each column to the target along all paths, `[columns]`.

    Args:
        weights: `[rows, columns]`; each row comes after all rows that read its node.
        rows: the column of each row's own node.
        values: `[columns]`, each node's value.
    """
    slope = weights.new_zeros(weights.shape[1])  # the target's change for one unit of each node
    slope[rows[0]] = 1
    for row, column in enumerate(rows):
        slope += slope[column] * weights[row] / values
    return slope * values


def heaviest(sizes: dict[Any, float], share: float) -> set[Any]:
    """The keys of the largest values that together have this share of the sum."""
    wanted, sum_, chosen = (share * sum(sizes.values()) if share < 1 else math.inf), 0.0, set()
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sum_ >= wanted or sizes[key] <= 0:
            break
        sum_ += sizes[key]
        chosen.add(key)
    return chosen
