"""One cell of a grid of patches, opened: the answers of both prompts and of the changed run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.alignment import Alignment
from workbench.circuits.errors import TaskError
from workbench.circuits.patching import Method
from workbench.circuits.position_grid import Component, Grid, GridSettings, Side
from workbench.circuits.position_runs import run_cells
from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.display import Tabular
from workbench.model.language_model import LanguageModel

Answers = list[tuple[str, float]]
"""Tokens with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class OpenedCell(Tabular):
    """The likeliest next tokens of both prompts and of the run with one component changed at one place."""

    row: str
    place: str
    clean: Answers
    corrupted: Answers
    changed: Answers

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each rank."""
        for rank, (one, other, new) in enumerate(zip(self.clean, self.corrupted, self.changed, strict=True), 1):
            sides = {"clean": one, "corrupted": other, "changed": new}
            named = {f"{name} {what}": value for name, pair in sides.items()
                     for what, value in zip(("token", "probability"), pair, strict=True)}  # fmt: skip
            yield {"rank": rank} | named

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: getattr(self, name) for name in ("row", "place", "clean", "corrupted", "changed")}


@checked(TaskError)
def open_cell(
    model: LanguageModel,
    alignment: Alignment,
    row: str,
    place: str,
    component: Component = "stream",
    *,
    into: Side = "corrupted",
    method: Method = "patch",
    pair: Natural = 0,
    top: Positive = 5,
    layers: list[Integer] | None = None,
    features: list[Natural] | None = None,
    seed: Natural = 0,
) -> OpenedCell:
    """The exchanged answer of one cell of `patch_positions`, whose arguments these are.

    Args:
        model: the model.
        alignment: from `align_prompts` or `align_task`.
        row: the name of a row of the grid: a layer, a head as `layer.head`, or a feature.
        place: the name of a place.
        component: what is changed.
        into: the prompt that runs.
        method: see `METHODS`.
        pair: the number of the pair.
        top: tokens of each answer.
        layers: of the rows; all by default.
        features: of the rows, as in `patch_positions`.
        seed: of "resample".

    Raises:
        TaskError: no such row, place or pair.
    """
    if place not in alignment.places:
        raise TaskError(f"There is no place {place!r}; the places are {', '.join(alignment.places)}.")
    if pair >= len(alignment):
        raise TaskError(f"There is no pair {pair}: the alignment has {len(alignment)}, counted from 0.")
    grid = Grid(model, alignment, GridSettings(component, into, method, "kl", layers, features, None, seed))
    named = {one.name: one for one in grid.rows}
    if row not in named:
        raise TaskError(f"There is no row {row!r}; rows are {', '.join(list(named)[:8])} and so on.")
    runs = grid.runs[pair][0]
    with torch.no_grad():
        cell = grid.makers[0].cell(named[row], pair, alignment.places.index(place))
    changed = run_cells(model, runs.base, [cell], shared=False)[0]
    ends = [runs.source.logits, runs.base.logits]
    clean, corrupted = ends if into == "corrupted" else ends[::-1]
    return OpenedCell(row, place, *(_likeliest(model, one, top) for one in (clean, corrupted, changed)))


def _likeliest(model: LanguageModel, logits: Tensor, top: int) -> Answers:
    best = logits.softmax(-1).topk(min(top, len(logits)))
    return list(zip(model.token_labels(best.indices), best.values.tolist(), strict=True))
