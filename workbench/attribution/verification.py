"""Do a graph's effects come true? What it predicts of taking a latent out, against what happens in the model.

Three regimes, from what the graph describes exactly to the model as it is:

    direct    attention patterns, norm scales and latents stay as on the prompt: only the edge to the target counts
    latents   as above, but the transcoders encode anew, so that later latents respond
    free      everything responds: the intervention in the plain model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.attribution.frozen import AttributionError, FrozenModel, freeze
from workbench.attribution.gradient import read_stream
from workbench.attribution.graph import Graph, Node
from workbench.attribution.sources import by_layer
from workbench.attribution.target import Reader, latent_reader, read_target
from workbench.dictionaries.coder import SparseCoder
from workbench.interventions.kinds import Scale
from workbench.model.edits import BoundEdit, Edit, Group, running
from workbench.model.language_model import LanguageModel, uninterrupted

Regime = Literal["direct", "latents", "free"]
REGIMES: tuple[Regime, ...] = ("direct", "latents", "free")
AT_ONCE = 32
"""Latents that are scaled in one batch, each in a row of its own."""


@dataclass(frozen=True)
class Verification:
    """Predicted and measured changes of a graph's target, each when one latent at its position is scaled."""

    nodes: list[int]
    """Ids."""
    labels: list[str]
    positions: list[int]
    factor: float
    """What the latents were multiplied by, one at a time; 0 takes them out."""
    predicted: dict[str, list[float]]
    """By regime: (factor - 1) times the edge's weight in `direct`, the node's effect in `latents`, its free effect in
    `free`."""
    measured: dict[str, list[float]]
    pearson: dict[str, float]
    """Correlation of the two; NaN for fewer than three nodes."""
    slope: dict[str, float]
    """Least squares through 0: measured = slope * predicted."""
    frozen_as_free: float
    """Correlation of the effects within the graph, which holds attention and norms, with what was measured when
    everything responds; NaN if that was not."""

    to_dict = asdict


def verify_graph(
    model: LanguageModel,
    transcoders: Sequence[SparseCoder] | Mapping[Any, SparseCoder],
    graph: Graph,
    nodes: int | Sequence[int] = 10,
    *,
    factor: float = 0.0,
    regimes: Sequence[Regime] = REGIMES,
) -> Verification:
    """Scale latents one at a time and set the target's change beside what the graph says.

    Args:
        model: the model that the graph is of.
        transcoders: those that it was made with.
        graph: from `attribute` or `load_graph`, whole or pruned; an edge that was cut predicts no direct change.
        nodes: how many latents, those with the largest absolute free effects; or their ids in the graph.
        factor: what each is multiplied by.
        regimes: what to measure; see above.

    Raises:
        AttributionError: another model or other transcoders than the graph's, an unknown regime, or a node that is no
            latent; a number of nodes or a factor that can't be used.
    """
    coders = by_layer(model, transcoders)
    hashes = [{"name": one.name, "hash": one.hash} for one in coders.values()]
    if model.hash != graph.made["model_hash"] or hashes != graph.made["transcoders"]:
        raise AttributionError("The graph was made with another model or other transcoders; give those.")
    if wrong := [one for one in regimes if one not in REGIMES]:
        raise AttributionError(f"A regime is 'direct', 'latents' or 'free', not {wrong[0]!r}.")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor) or factor == 1:
        raise AttributionError(f"factor is a finite number other than 1, which would change nothing; not {factor!r}.")
    chosen = _chosen(graph, nodes)
    tokens = torch.tensor([graph.tokens])
    with uninterrupted(), torch.no_grad():
        reader = _reader(model, coders, graph)
        bare = float(read_stream(model, tokens, reader, [])[0])
        column = {node.id: place for place, node in enumerate(graph.nodes)}
        parts = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
        predicted: dict[str, list[float]] = {}
        measured: dict[str, list[float]] = {}
        frozen = None
        for regime in regimes:
            if regime == "free":
                found = torch.cat(
                    [_free(model, tokens, reader, [_scale(coders, node, factor) for node in some]) for some in parts]
                )
            else:
                frozen = frozen or _freeze(model, tokens, coders, graph)
                held = _Held(model, frozen, coders, graph, latents=regime == "latents")
                found = torch.cat(
                    [
                        read_stream(model, tokens.expand(len(some), -1), reader, [Group(held.edits(some, factor))])
                        for some in parts
                    ]
                )
            sizes = {
                "direct": [float(graph.weights[0, column[node.id]]) for node in chosen],
                "latents": [node.effect for node in chosen],
                "free": [node.gradient_effect for node in chosen],
            }[regime]
            predicted[regime] = [(factor - 1) * size for size in sizes]
            measured[regime] = (found - bare).tolist()
    pairs = {regime: torch.tensor([predicted[regime], measured[regime]]).double() for regime in regimes}
    held_back = torch.tensor([(factor - 1) * node.effect for node in chosen]).double()
    return Verification(
        [node.id for node in chosen],
        [node.label for node in chosen],
        [node.position for node in chosen],
        factor,
        predicted,
        measured,
        {regime: _pearson(*pair) for regime, pair in pairs.items()},
        {regime: float((one * two).sum() / (one * one).sum()) for regime, (one, two) in pairs.items()},
        _pearson(held_back, pairs["free"][1]) if "free" in pairs else float("nan"),
    )


def _chosen(graph: Graph, nodes: int | Sequence[int]) -> list[Node]:
    latents = [node for node in graph.nodes if node.kind == "latent"]
    if isinstance(nodes, bool) or (isinstance(nodes, int) and nodes < 1) or isinstance(nodes, float | str):
        raise AttributionError(f"nodes is a whole number from 1, or a list of ids of latents, not {nodes!r}.")
    if isinstance(nodes, int):
        latents.sort(key=lambda node: -abs(node.gradient_effect))
        chosen = latents[:nodes]
    else:
        known = {node.id: node for node in latents}
        if strangers := [id for id in nodes if id not in known]:
            raise AttributionError(f"Node {strangers[0]} is not a latent of this graph.")
        chosen = [known[id] for id in nodes]
    if not chosen:
        raise AttributionError("There is no latent to scale in this graph.")
    return chosen


def _reader(model: LanguageModel, coders: Mapping[int, SparseCoder], graph: Graph) -> Reader:
    target = graph.target
    if target.feature is not None:
        return latent_reader(coders, target.layer, target.feature, target.position)
    said = tuple(graph.made["target_tokens"])
    tokens = torch.tensor([graph.tokens])
    return read_target(model, coders, tokens, said if len(said) == 2 else said[0], target.position)


def _freeze(model: LanguageModel, tokens: Tensor, coders: Mapping[int, SparseCoder], graph: Graph) -> FrozenModel:
    return freeze(model, tokens, coders, first=graph.made["first"], linear_from=model.network.n_layers)


def _free(model: LanguageModel, tokens: Tensor, reader: Reader, scales: Sequence[Scale]) -> Tensor:
    """With the plain model: each row its own intervention."""
    groups = [Group(model.bind([one]), slice(row, row + 1)) for row, one in enumerate(scales)]
    return read_stream(model, tokens.expand(len(scales), -1), reader, groups)


def _scale(coders: Mapping[int, SparseCoder], node: Node, factor: float) -> Scale:
    """The intervention on a latent's node; what a loaded graph has as its feature is a name alone."""
    assert node.feature is not None
    return Scale(coders[node.layer].feature(node.feature.index), factor, positions=(node.position,))


class _Held:
    """Edits that hold a model to what it did on the prompt, but for what the graph describes."""

    def __init__(
        self,
        model: LanguageModel,
        frozen: FrozenModel,
        coders: Mapping[int, SparseCoder],
        graph: Graph,
        *,
        latents: bool,
    ):
        self.model, self.frozen, self.coders, self.latents = model, frozen, coders, latents
        self.first = graph.made["first"]
        linear = graph.made["mlps"] == "linear" and coders
        self.linear_from = min(coders) if linear else model.network.n_layers
        names = [f"blocks.{layer}.attn.{name}" for layer in range(len(frozen.layers)) for name in ("hook_q", "hook_k")]
        self.attending = model.capture(frozen.tokens[None], names)

    def edits(self, nodes: Sequence[Node], factor: float) -> Sequence[BoundEdit]:
        """Those of a batch with one row for each node, whose latent is scaled there."""
        edits = [Edit(name, _put(value)) for name, value in self.attending.items()]
        for layer, block in enumerate(self.frozen.layers):
            change = self.frozen.entering.new_zeros(len(nodes), *self.frozen.entering.shape)
            for row, node in enumerate(nodes):
                if node.layer == layer:
                    assert node.feature is not None
                    direction = self.coders[layer].direction(node.feature.index).detach().float()
                    change[row, node.position] = (factor - 1) * node.value * direction
            edits += _pair(f"blocks.{layer}.ln1.hook_in", f"blocks.{layer}.ln1.hook_out", block.attention_norm.apply)
            edits += _pair(f"blocks.{layer}.ln2.hook_in", f"blocks.{layer}.ln2.hook_out", block.mlp_norm.apply)
            edits += _pair(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out", self._mlp(layer, change))
        edits += _pair("ln_final.hook_in", "ln_final.hook_out", self.frozen.final.apply)
        return self.model.network.prepare(edits)

    def _mlp(self, layer: int, change: Tensor) -> Callable[[Tensor], Tensor]:
        """What an MLP writes `[rows, pos, d_model]` where it reads something else than on the prompt."""
        before, written = self.frozen.read[layer], self.frozen.written[layer]
        coder, first = self.coders.get(layer), self.first

        def write(x: Tensor) -> Tensor:
            out = written + change
            if coder is not None:
                moved = x.new_zeros(x.shape)
                if self.latents:
                    moved[:, first:] = coder.reconstruct(x[:, first:]) - coder.reconstruct(before[first:])
                elif coder.W_skip is not None:
                    moved[:, first:] = (x - before)[:, first:] @ coder.W_skip.T
                return out + moved
            if layer < self.linear_from:
                return out
            path = self.model.hook_points[f"blocks.{layer}.hook_mlp_out"].module
            mlp = self.model.network.module.get_submodule(path or "")
            around = before.expand_as(x).contiguous()
            with running(None):  # the edits of this run are not for the MLP that is asked here
                return out + torch.func.jvp(mlp, (around,), (x - before,))[1]

        return write


def _put(value: Tensor) -> Callable[[Tensor], Tensor]:
    return value.expand_as


def _pair(reads: str, writes: str, make: Callable[[Tensor], Tensor]) -> list[Edit]:
    """Edits that put `make(what was at reads)` in the place of what is at `writes`."""
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    return [Edit(reads, remember), Edit(writes, lambda x: make(seen.pop()).to(x))]


def _pearson(one: Tensor, two: Tensor) -> float:
    if len(one) < 3:
        return float("nan")
    return float(torch.corrcoef(torch.stack([one, two]))[0, 1])
