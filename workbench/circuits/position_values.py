"""The cells of a grid: what each component's output becomes at each place of a pair of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuits.alignment import Alignment, Place
from workbench.circuits.errors import TaskError
from workbench.circuits.patching import Method
from workbench.circuits.patching_runs import head_point, mlp_points
from workbench.circuits.position_runs import BaseRun, Cell, Put, stream_point
from workbench.dictionaries.codes import Change, Codes
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import flattened
from workbench.dictionaries.sites import places as one_site
from workbench.interventions.parts import PARTS, check_writers
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel

MOST = 20
"""Features that are looked at where none are named."""


@dataclass(frozen=True)
class Row:
    """One row of a grid: a component."""

    name: str
    layer: int
    hook_point: str
    head: int | None = None
    feature: int | None = None


@dataclass(frozen=True)
class PairRuns:
    """The runs of a pair of prompts: the one that is changed, and the one that changes come from."""

    base: BaseRun
    source: BaseRun


def rows_of(model: LanguageModel, component: str, layers: Sequence[int] | None) -> list[Row]:
    """The rows of a component: "stream", "attention", "mlp" or "heads".

    Raises:
        TaskError: a layer that the model lacks; heads that can't be read one by one.
        EditError: outputs that are not what is added to the stream, see `check_writers`.
    """
    count = model.network.n_layers
    chosen = list(range(count)) if layers is None else sorted(set(layers))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < count:
        raise TaskError(f"Layers are numbers from 0 to {count - 1}, at least one, not {list(layers or [])}.")
    if component == "heads":
        points = {layer: head_point(model, layer) for layer in chosen}
        heads = range(model.network.n_heads)
        return [Row(f"{layer}.{head}", layer, points[layer], head) for layer in chosen for head in heads]
    if component == "stream":
        return [Row(str(layer), layer, stream_point(layer)) for layer in chosen]
    if component == "mlp":
        points = dict(enumerate(mlp_points(model)))
    else:
        check_writers(model, chosen)
        points = {layer: f"blocks.{layer}.{PARTS['attention']}" for layer in chosen}
    return [Row(str(layer), layer, points[layer]) for layer in chosen]


class Replacements:
    """The cells of plain components: tensors that take the place of others.

    Args:
        alignment: the pairs.
        method: see `METHODS`.
        into: "clean" or "corrupted": the prompt that is changed.
        runs: of each pair.
        other: for each pair, the pair whose prompt "resample" takes.
    """

    def __init__(
        self, alignment: Alignment, method: Method, into: str, runs: Sequence[PairRuns], other: Sequence[int]
    ) -> None:
        self.alignment, self.method, self.into, self.runs, self.other = alignment, method, into, runs, other

    def cell(self, row: Row, pair: int, place: int) -> Cell:
        """What one row's component becomes at one place of one pair."""
        positions = self.positions(pair, place, self.into)
        values = self.values(row.hook_point, pair, place, len(positions))  # [k, *shape]
        values = values if row.head is None else values[:, row.head]
        return Cell(row.layer, (Put(row.hook_point, positions, values, row.head),))

    def positions(self, pair: int, place: int, side: str) -> tuple[int, ...]:
        """The positions of a place in the clean or in the corrupted prompt of a pair."""
        one: Place = self.alignment.pairs[pair].places[place]
        return one.clean if side == "clean" else one.corrupted

    def values(self, name: str, pair: int, place: int, count: int) -> Tensor:
        """What the tensor at a hook point becomes at a place of `count` positions: `[count, *shape]`."""
        base_side = self.into
        source_side = "corrupted" if self.into == "clean" else "clean"
        if self.method == "patch":
            return self.runs[pair].source.activations[name][list(self.positions(pair, place, source_side))]
        if self.method == "zero":
            return torch.zeros_like(self.runs[pair].base.activations[name][:count])
        if self.method == "resample":
            other = self.other[pair]
            at = self.positions(other, place, base_side)
            if len(at) < count:
                raise TaskError(
                    f"The place {self.alignment.places[place]!r} has {count} tokens in one pair and {len(at)} in "
                    'another, so none can be taken from there; choose method="patch", or spans of equal lengths.'
                )
            return self.runs[other].base.activations[name][list(at[-count:])]
        every = [
            run.source.activations[name][list(self.positions(n, place, source_side))].mean(0)
            for n, run in enumerate(self.runs)
        ]
        return torch.stack(every).mean(0).expand(count, *every[0].shape)


class FeatureChanges:
    """The cells of a dictionary's features: changes that are added where it writes.

    A feature's value becomes the one that `Replacements` has for it; what is added is `decode(edited codes) -
    decode(codes)`.

    Args:
        model: the model.
        dictionary: it reads at one hook point and writes at one.
        plain: replacements of the activations that it reads.
    """

    def __init__(self, model: LanguageModel, dictionary: Dictionary, plain: Replacements) -> None:
        self.model, self.dictionary, self.plain = model, dictionary, plain
        self.reads, self.writes = one_site(dictionary, model)
        self.layer = _layer_of(self.reads)

    @property
    def names(self) -> list[str]:
        """The hook points whose activations are needed."""
        return list(dict.fromkeys((self.reads.name, self.writes.name)))

    def rows(self, features: Sequence[int] | None) -> list[Row]:
        """A row for each feature; without a choice, for those that change most, times the length of what they write."""
        chosen = self._changing_most() if features is None else list(dict.fromkeys(features))
        if not chosen:
            raise TaskError(f"No feature of {self.dictionary.name} differs at these places; name features.")
        for index in chosen:
            self.dictionary.check(index)
        return [Row(f"{self.dictionary.name}:{one}", self.layer, self.writes.name, None, one) for one in chosen]

    def cell(self, row: Row, pair: int, place: int) -> Cell:
        """The change of one feature at one place of one pair."""
        assert row.feature is not None
        positions = self.plain.positions(pair, place, self.plain.into)
        base = self.plain.runs[pair].base.activations
        read, written = (flattened(base[one.name][list(positions)], one) for one in (self.reads, self.writes))
        wanted = self._wanted(pair, place, len(positions), row.feature)
        new = self.dictionary.intervene(read, written, [Change(row.feature, wanted.to)])
        change = (new - written).float().reshape(len(positions), *self.writes.shape)
        return Cell(self.layer, (Put(self.writes.name, positions, change, adds=True),))

    def _wanted(self, pair: int, place: int, count: int, feature: int) -> Tensor:
        """The values that a feature takes, `[count]`."""
        plain = self.plain
        if plain.method == "zero":
            return torch.zeros(count, device=self.model.device)
        if plain.method == "mean":
            side = "corrupted" if plain.into == "clean" else "clean"
            each = [
                self._codes(run.source, plain.positions(n, place, side)).value_of(feature).float().mean()
                for n, run in enumerate(plain.runs)
            ]
            return torch.stack(each).mean().expand(count)
        values = plain.values(self.reads.name, pair, place, count)
        return self.dictionary.encode(flattened(values, self.reads)).value_of(feature)

    def _codes(self, run: BaseRun, positions: Sequence[int]) -> Codes:
        return self.dictionary.encode(flattened(run.activations[self.reads.name][list(positions)], self.reads))

    def _changing_most(self) -> list[int]:
        most = torch.zeros(self.dictionary.n_features, device=self.model.device)
        for pair, run in enumerate(self.plain.runs):
            for place in range(len(self.plain.alignment.places)):
                positions = self.plain.positions(pair, place, self.plain.into)
                values = self.plain.values(self.reads.name, pair, place, len(positions))
                new = self.dictionary.encode(flattened(values, self.reads)).dense().float()
                old = self._codes(run.base, positions).dense().float()
                most = torch.maximum(most, (new - old).abs().amax(0))
        count = min(4 * MOST, int((most > 0).sum()))
        found = most.topk(count).indices.tolist()
        length = {one: float(most[one]) * float(self.dictionary.direction(one).norm()) for one in found}
        return sorted(found, key=lambda one: -length[one])[:MOST]


def _layer_of(point: HookPoint) -> int:
    words = point.name.split(".")
    if words[0] != "blocks":
        raise TaskError(f"{point.name} belongs to no layer, so its features have no place in a grid of layers.")
    return int(words[1])
