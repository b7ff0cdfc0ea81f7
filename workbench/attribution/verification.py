"""A graph's predicted effects of scaling a latent, against those measured in the model.

Three regimes, from the graph's own assumptions to the unchanged model:

    direct    attention patterns, norm scales and latents stay as on the prompt: only the edge to the target acts
    latents   as above, but the transcoders encode anew, so that later latents respond
    free      everything responds: the intervention in the plain model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.frozen import FrozenModel, along, freeze, mlp_at
from workbench.attribution.gradient import read_stream, read_target_value
from workbench.attribution.graph import Graph, Node
from workbench.attribution.parts import Part, Transcoders, owners, transcoders_by_layer
from workbench.attribution.target import Reader, latent_reader, read_target
from workbench.core.checks import Integer, Number, Positive, checked
from workbench.core.display import Tabular, columns
from workbench.interventions.kinds import Scale
from workbench.model.edits import BoundEdit, Edit, Group, running
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.widened import in_float32

Regime = Literal["direct", "latents", "free"]
REGIMES: tuple[Regime, ...] = get_args(Regime)
AT_ONCE = 32
"""Latents scaled in one batch, each in its own row."""


@dataclass(frozen=True)
class Verification(Tabular):
    """Predicted and measured changes of a graph's target where one latent at its position is scaled."""

    nodes: list[int]
    """Ids of the latents' nodes."""
    labels: list[str]
    positions: list[int]
    factor: float
    """The factor that each latent is multiplied by, one at a time; 0 ablates it."""
    predicted: dict[str, list[float]]
    """By regime: (factor - 1) times the weight of the edge to the target in `direct`, the node's effect in `latents`,
    its gradient effect in `free`."""
    measured: dict[str, list[float]]
    """By regime: the change of the target's value."""
    pearson: dict[str, float]
    """By regime: correlation of predicted and measured changes; NaN for fewer than three nodes."""
    slope: dict[str, float]
    """By regime: least squares through 0, measured = slope * predicted."""
    frozen_as_free: float
    """Correlation of the nodes' effects (attention and norms frozen) with the changes measured in `free`; NaN where
    that regime was not measured."""

    to_dict = asdict

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each latent."""
        by_regime = {f"predicted_{one}": self.predicted[one] for one in self.predicted}
        by_regime |= {f"measured_{one}": self.measured[one] for one in self.measured}
        return columns(node=self.nodes, label=self.labels, position=self.positions, **by_regime)

    def _facts(self) -> Mapping[str, object]:
        return {"factor": self.factor, "pearson": self.pearson, "slope": self.slope}


@checked(AttributionError)
def verify_graph(
    model: LanguageModel,
    transcoders: Transcoders,
    graph: Graph,
    nodes: Positive | Sequence[Integer] = 10,
    *,
    factor: Number = 0.0,
    regimes: Sequence[Regime] = REGIMES,
) -> Verification:
    """The target's changes where latents are scaled one at a time, predicted by the graph and measured in the model.

    Args:
        model: the model of the graph.
        transcoders: the transcoders that the graph was computed with.
        graph: from `attribute` or `load_graph`, pruned or not; an edge that was cut predicts no direct change.
        nodes: number of latents, those with the largest absolute gradient effects; or their ids in the graph.
        factor: the factor that each latent is multiplied by; not 1.
        regimes: the regimes to measure, see above.

    Raises:
        AttributionError: another model or other transcoders than the graph's, an unknown regime, a node that is no
            latent of the graph, or a number out of range.
    """
    coders = check_graph(model, transcoders, graph)
    if factor == 1:
        raise AttributionError("factor is a number other than 1, which changes nothing.")
    if not regimes:
        raise AttributionError(f"regimes is empty; name at least one of {', '.join(REGIMES)}.")
    chosen, model = _chosen(graph, nodes, coders), in_float32(model)
    tokens = torch.tensor([graph.tokens], device=model.device)
    with uninterrupted(), torch.no_grad():
        reader = _reader(model, coders, graph)
        column = {node.id: place for place, node in enumerate(graph.nodes)}
        parts = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
        predicted: dict[str, list[float]] = {}
        measured: dict[str, list[float]] = {}
        frozen = None
        for regime in regimes:
            if regime == "free":
                bare = reader.value if reader.tokens else float(read_stream(model, tokens, reader, [])[0])
                values = torch.cat(
                    [_free(model, tokens, reader, [[_scale(coders, node, factor)] for node in some]) for some in parts]
                )
            else:
                frozen = frozen or _freeze(model, tokens, coders, graph)
                bare = float(read_stream(model, tokens, reader, [])[0])
                held = _HeldModel(model, frozen, coders, graph, latents=regime == "latents")
                values = torch.cat(
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
            measured[regime] = (values - bare).tolist()
    pairs = {regime: torch.tensor([predicted[regime], measured[regime]]).double() for regime in regimes}
    held_back = torch.tensor([(factor - 1) * node.effect for node in chosen]).double()
    return Verification(
        nodes=[node.id for node in chosen],
        labels=[node.label for node in chosen],
        positions=[node.position for node in chosen],
        factor=factor,
        predicted=predicted,
        measured=measured,
        pearson={regime: pearson(*pair) for regime, pair in pairs.items()},
        slope={regime: float((one * two).sum() / (one * one).sum()) for regime, (one, two) in pairs.items()},
        frozen_as_free=pearson(held_back, pairs["free"][1]) if "free" in pairs else float("nan"),
    )


def check_graph(model: LanguageModel, transcoders: Transcoders, graph: Graph) -> dict[int, Part]:
    """The transcoders by layer; raises `AttributionError` where a graph is of another model or other transcoders."""
    coders = transcoders_by_layer(model, transcoders)
    recorded = graph.provenance.get("transcoders", [])
    same = len(recorded) == len(owners(coders)) and all(
        one.name == about["name"] and one.is_named(about["hash"])
        for one, about in zip(owners(coders), recorded, strict=True)
    )
    if not same or not model.is_named(graph.provenance.get("model_hash")):
        raise AttributionError("The graph was computed with another model or other transcoders; give those.")
    return coders


def measured_without(
    model: LanguageModel, transcoders: Transcoders, graph: Graph, groups: Sequence[Sequence[Node]]
) -> list[float]:
    """The change of the target in the plain model where the latents of a group are ablated together, for each group."""
    coders, model = transcoders_by_layer(model, transcoders), in_float32(model)
    for group in groups:
        for node in group:
            _check_layer(node, coders)
    tokens = torch.tensor([graph.tokens], device=model.device)
    with uninterrupted(), torch.no_grad():
        reader = _reader(model, coders, graph)
        bare = reader.value if reader.tokens else float(read_stream(model, tokens, reader, [])[0])
        scales = [[_scale(coders, node, 0.0) for node in group] for group in groups]
        parts = [scales[start : start + AT_ONCE] for start in range(0, len(scales), AT_ONCE)]
        return [float(one) - bare for some in parts for one in _free(model, tokens, reader, some)]


def _chosen(graph: Graph, nodes: int | Sequence[int], coders: Mapping[int, Part]) -> list[Node]:
    latents = [node for node in graph.nodes if node.kind == "latent"]
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
    for node in chosen:
        _check_layer(node, coders)
    return chosen


def _check_layer(node: Node, coders: Mapping[int, Part]) -> None:
    """Refuse a node of a file whose layer was altered."""
    if node.layer not in coders:
        raise AttributionError(f"The graph has a latent in layer {node.layer}, for which it has no transcoder.")


def _reader(model: LanguageModel, coders: Mapping[int, Part], graph: Graph) -> Reader:
    target = graph.target
    if target.feature is not None:
        _check_layer(target, coders)
        return latent_reader(coders, target.layer, target.feature, target.position)
    chosen = tuple(graph.provenance["target_tokens"])
    tokens = torch.tensor([graph.tokens], device=model.device)
    return read_target(model, coders, tokens, chosen if len(chosen) != 1 else chosen[0], target.position)


def _freeze(model: LanguageModel, tokens: Tensor, coders: Mapping[int, Part], graph: Graph) -> FrozenModel:
    return freeze(model, tokens, coders, first=graph.provenance["first"], linear_from=model.network.n_layers)


def _free(model: LanguageModel, tokens: Tensor, reader: Reader, scales: Sequence[Sequence[Scale]]) -> Tensor:
    """The target's value in the plain model, in each row under some of the interventions: `[rows]`."""
    groups = [Group(model.bind(some), slice(row, row + 1)) for row, some in enumerate(scales)]
    return read_target_value(model, tokens.expand(len(scales), -1), reader, groups)


def _scale(coders: Mapping[int, Part], node: Node, factor: float) -> Scale:
    """The intervention on a latent's node; a feature of a loaded graph does not hold its dictionary."""
    assert node.feature is not None
    return Scale(coders[node.layer].feature(node.feature.index), factor, positions=(node.position,))


class _HeldModel:
    """A model in which edits keep everything as on the prompt, except what the graph describes."""

    def __init__(
        self,
        model: LanguageModel,
        frozen: FrozenModel,
        coders: Mapping[int, Part],
        graph: Graph,
        *,
        latents: bool,
    ):
        self.model, self.frozen, self.coders, self.latents = model, frozen, coders, latents
        self.first = graph.provenance["first"]
        linear = graph.provenance["mlps"] == "linear" and coders
        self.linear_from = min(coders) if linear else model.network.n_layers
        names = [f"blocks.{layer}.attn.{name}" for layer in range(len(frozen.layers)) for name in ("hook_q", "hook_k")]
        self.attending = model.capture(frozen.tokens[None], names)

    def edits(self, nodes: Sequence[Node], factor: float) -> Sequence[BoundEdit]:
        """The edits of a batch in which each row scales the latent of one node."""
        edits, home = [Edit(name, _put(value)) for name, value in self.attending.items()], self.model.device
        changes = [torch.zeros_like(self.frozen.entering).repeat(len(nodes), 1, 1) for _ in self.frozen.layers]
        for row, node in enumerate(nodes):
            assert node.feature is not None
            part = self.coders[node.layer]
            each = part.rows(torch.tensor([node.feature.index], device=self.model.device))
            for layer, direction in zip(part.layers, each, strict=True):
                changes[layer][row, node.position] += (factor - 1) * node.value * direction[0]
        carried: dict[int, Tensor] = {}  # what latents that respond write into later layers
        for layer, (block, change) in enumerate(zip(self.frozen.layers, changes, strict=True)):
            for norm in block.norms:
                edits += _pair(home, f"{norm.at}.hook_in", f"{norm.at}.hook_out", norm.apply)
            if block.heads.cut is not None:
                edits += _pair(home, f"blocks.{layer}.attn.hook_in", f"blocks.{layer}.attn.hook_z", block.heads.mix)
            reads = self.coders[layer].reads if layer in self.coders else f"blocks.{layer}.mlp.hook_in"
            edits += _pair(home, reads, block.writes, self._mlp(layer, change, carried))
        edits += _pair(home, "ln_final.hook_in", "ln_final.hook_out", self.frozen.final.apply)
        return self.model.network.prepare(edits)

    def _mlp(self, layer: int, change: Tensor, carried: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
        """A function from an MLP's input `[rows, pos, d_model]` to its output under the graph's assumptions."""
        before, written = self.frozen.read[layer], self.frozen.written[layer]
        coder, first = self.coders.get(layer), self.first

        def write(x: Tensor) -> Tensor:
            out = written + change
            if coder is not None:
                moved = x.new_zeros(x.shape)
                if self.latents:
                    each = zip(coder.layers, coder.written(x[:, first:]), coder.written(before[first:]), strict=True)
                    for at, now, was in each:
                        carried[at] = carried.pop(at, 0.0) + (now - was)  # type: ignore[operator]
                    moved[:, first:] = carried.pop(layer)
                elif coder.skip is not None:
                    moved[:, first:] = (x - before)[:, first:] @ coder.skip.T
                return out + moved
            if layer < self.linear_from:
                return out
            mlp = mlp_at(self.model, layer)
            around = before.expand_as(x).contiguous()
            with running(None):  # the edits of this run must not act on this call of the MLP
                return out + along(mlp, around, x - before)

        return write


def _put(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: value.to(x.device).expand_as(x)


def _pair(home: torch.device, reads: str, writes: str, function: Callable[[Tensor], Tensor]) -> list[Edit]:
    """Edits that replace the tensor at `writes` by `function`, which computes on `home`, of the tensor at `reads`."""
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x.to(home)]
        return x

    return [Edit(reads, remember, reads_only=True), Edit(writes, lambda x: function(seen.pop()).to(x))]


def pearson(one: Tensor, two: Tensor) -> float:
    """The correlation of two vectors; NaN for fewer than three numbers."""
    if len(one) < 3:
        return float("nan")
    return float(torch.corrcoef(torch.stack([one, two]))[0, 1])
