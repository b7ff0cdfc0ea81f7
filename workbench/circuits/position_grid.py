"""The runs and the cells of a grid of patches, and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from workbench.circuits.alignment import AlignedPair, Alignment
from workbench.circuits.errors import TaskError
from workbench.circuits.patching import Method
from workbench.circuits.position_result import PositionPatching
from workbench.circuits.position_runs import Cell, no_edits, run_base, run_with_slopes
from workbench.circuits.position_scores import Metric, Score, metric_name, score_of
from workbench.circuits.position_values import FeatureChanges, PairRuns, Replacements, Row, rows_of
from workbench.core.checks import Natural, Positive, PositiveNumber, checked
from workbench.core.display import Shown
from workbench.dictionaries.protocol import Dictionary
from workbench.evaluation.bootstrap import bootstrap
from workbench.model.edits import Edit
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

Side = Literal["corrupted", "clean"]
Component = Literal["stream", "attention", "mlp", "heads"] | Dictionary
"""The stream that enters a layer; what its attention or its MLP adds; its heads; or features of a dictionary."""
EMBEDDINGS = "hook_embed"


@checked(TaskError)
@dataclass(frozen=True)
class EmbeddingNoise(Shown):
    """Normal noise on the embeddings of a place of the clean prompt, in place of a corrupted prompt."""

    place: str
    """The name of the place."""
    scale: PositiveNumber = 3.0
    """Standard deviation of the noise, in standard deviations of the embeddings of all pairs' tokens."""
    samples: Positive = 10
    """Draws for each pair."""
    seed: Natural = 0


@dataclass(frozen=True)
class GridSettings:
    """What is patched, and how; see `patch_positions`."""

    component: Component
    into: Side
    method: Method
    metric: Metric
    layers: Sequence[int] | None
    features: Sequence[int] | None
    noise: EmbeddingNoise | None
    seed: int

    def check(self, alignment: Alignment) -> None:
        """Raise `TaskError` where settings contradict each other or the alignment."""
        if not alignment.pairs or not alignment.places:
            raise TaskError("The alignment has no pairs or no places; make it with align_prompts.")
        if isinstance(self.component, str) and self.features is not None:
            raise TaskError("Features belong to a dictionary; give that as component, or leave them out.")
        if isinstance(self.component, Dictionary) and self.layers is not None:
            raise TaskError("A dictionary's features are where it writes; leave the layers out.")
        if self.method == "resample" and len(alignment) < 2:
            raise TaskError("Resampling takes values of another pair; give at least two pairs.")


class Grid:
    """The runs and cells of a grid, pair by pair, and its result."""

    def __init__(
        self, model: LanguageModel, alignment: Alignment, settings: GridSettings, *, slopes: bool = False
    ) -> None:
        settings.check(alignment)
        if settings.noise:
            alignment = Alignment([_clean_alone(pair) for pair in alignment.pairs])
        self.model, self.alignment, self.settings, self.slopes = model, alignment, settings, slopes
        component, noise = settings.component, settings.noise
        self.draws = noise.samples if noise else 1
        self._noises = _noises(model, alignment, noise) if noise else [None] * len(alignment)
        plain = rows_of(model, component, settings.layers) if isinstance(component, str) else []
        names = list(dict.fromkeys(row.hook_point for row in plain))
        if isinstance(component, Dictionary):
            names = FeatureChanges(model, component, self._plain([])).names
        self.runs = [[self._pair(n, draw, names) for draw in range(self.draws)] for n in range(len(alignment))]
        self.makers = [self._maker([pair[draw] for pair in self.runs]) for draw in range(self.draws)]
        first = self.makers[0]
        self.rows: list[Row] = first.rows(settings.features) if isinstance(first, FeatureChanges) else plain
        self._ends = [[self._both(pair) for pair in some] for some in self.runs]

    def samples(self, number: int) -> list[tuple[PairRuns, Score, list[list[Cell]]]]:
        """Of one pair, for each draw of the noise: its runs, its metric, and its cells by place and row."""
        found = []
        for draw, runs in enumerate(self.runs[number]):
            score = score_of(self.settings.metric, self.alignment.pairs[number], *self._ends[number][draw])
            with uninterrupted(), torch.no_grad():
                cells = [
                    [self.makers[draw].cell(row, number, place) for row in self.rows]
                    for place in range(len(self.alignment.places))
                ]
            found.append((runs, score, cells))
        return found

    def result(self, values: Tensor, method: str, answers: list[list[str]], seconds: float) -> PositionPatching:
        """The result for the metric `[pairs, rows, places]` under each change."""
        sides = torch.zeros(2, len(self.alignment))
        for number, pair in enumerate(self.alignment.pairs):
            for ends in self._ends[number]:
                score = score_of(self.settings.metric, pair, *ends)
                for side, logits in enumerate(ends):
                    sides[side, number] += float(score(logits[None])[0]) / self.draws
        unchanged = sides[0 if self.settings.into == "clean" else 1]
        effects = values - unchanged[:, None, None]
        low, high = _intervals(effects)
        component = self.settings.component
        return PositionPatching(
            component=component if isinstance(component, str) else component.name,
            method=method,
            into=self.settings.into,
            metric=metric_name(self.settings.metric),
            rows=[row.name for row in self.rows],
            layers=[row.layer for row in self.rows],
            places=self.alignment.places,
            values=values.mean(0),
            effects=effects.mean(0),
            low=low,
            high=high,
            clean=float(sides[0].mean()),
            corrupted=float(sides[1].mean()),
            pairs=len(self.alignment),
            answers=answers,
            seconds=seconds,
        )

    def _pair(self, number: int, draw: int, names: Sequence[str]) -> PairRuns:
        pair, noises = self.alignment.pairs[number], self._noises[number]
        edits = no_edits if noises is None else _adding(*noises[draw])
        sides = [(pair.clean, no_edits), (pair.corrupted, edits)]
        if self.settings.into == "corrupted":
            sides.reverse()
        (tokens, changes), (source_tokens, source_changes) = sides
        source = run_base(self.model, source_tokens, names, source_changes)
        if not self.slopes:
            return PairRuns(run_base(self.model, tokens, names, changes), source)

        def score(logits: Tensor) -> Score:
            ends = (logits, source.logits) if self.settings.into == "clean" else (source.logits, logits)
            return score_of(self.settings.metric, pair, *ends)

        return PairRuns(run_with_slopes(self.model, tokens, names, changes, score), source)

    def _both(self, runs: PairRuns) -> tuple[Tensor, Tensor]:
        """The logits behind the clean and the corrupted prompt."""
        ends = runs.base.logits, runs.source.logits
        return ends if self.settings.into == "clean" else (ends[1], ends[0])

    def _plain(self, runs: Sequence[PairRuns]) -> Replacements:
        count = len(runs)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.settings.seed))
        other = torch.empty(count, dtype=torch.long)
        other[order] = order.roll(1)
        return Replacements(self.alignment, self.settings.method, self.settings.into, runs, other.tolist())

    def _maker(self, runs: Sequence[PairRuns]) -> Replacements | FeatureChanges:
        plain = self._plain(runs)
        if isinstance(self.settings.component, str):
            return plain
        return FeatureChanges(self.model, self.settings.component, plain)


def _clean_alone(pair: AlignedPair) -> AlignedPair:
    """The pair with its clean prompt on both sides."""
    places = [replace(one, corrupted=one.clean) for one in pair.places]
    return replace(pair, corrupted=pair.clean, places=places, words=(pair.words[0], pair.words[0]))


def _intervals(effects: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of the 95% intervals of the mean over pairs, for effects `[pairs, rows, places]`."""
    if len(effects) < 2:
        unknown = torch.full(effects.shape[1:], torch.nan)
        return unknown, unknown.clone()
    sums = {"effect": effects.flatten(1), "pairs": torch.ones(len(effects), 1)}
    mean = bootstrap(sums, lambda drawn: {"effect": drawn["effect"] / drawn["pairs"]})["effect"]
    return mean.low.view(effects.shape[1:]).float(), mean.high.view(effects.shape[1:]).float()


def _noises(
    model: LanguageModel, alignment: Alignment, noise: EmbeddingNoise
) -> list[list[tuple[tuple[int, ...], Tensor]]]:
    """For each pair and draw, the positions and the noise `[positions, width]` on their embeddings."""
    if noise.place not in alignment.places:
        raise TaskError(f"There is no place {noise.place!r}; the places are {', '.join(alignment.places)}.")
    place = alignment.places.index(noise.place)
    seen = [run_base(model, pair.clean, [EMBEDDINGS]).activations[EMBEDDINGS].float() for pair in alignment.pairs]
    spread = noise.scale * float(torch.cat(seen).std())
    chance, drawn = torch.Generator().manual_seed(noise.seed), []
    for pair in alignment.pairs:
        at = pair.places[place].clean
        shape = len(at), seen[0].shape[-1]
        drawn.append([(at, spread * torch.randn(shape, generator=chance)) for _ in range(noise.samples)])
    return drawn


def _adding(at: tuple[int, ...], noise: Tensor) -> Callable[[int], Sequence[Edit]]:
    """The edits that add noise to embeddings, from the first position that a pass computes."""

    def edits(start: int) -> Sequence[Edit]:
        here = [(position - start, row) for row, position in enumerate(at) if position >= start]
        if not here:
            return no_edits(start)

        def change(x: Tensor) -> Tensor:
            new = x.clone()
            for position, row in here:
                new[:, position] += noise[row].to(x)
            return new

        return [Edit(EMBEDDINGS, change)]

    return edits
