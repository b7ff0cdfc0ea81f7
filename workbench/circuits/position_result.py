"""The result of patching layer by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.core.display import Tabular

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True)
class PositionPatching(Tabular):
    """The metric of a prompt's run where one component is changed at one place: a grid of rows and places."""

    component: str
    method: str
    into: str
    """The prompt that runs and is changed: "clean" or "corrupted"."""
    metric: str
    rows: list[str]
    """Layers, heads as `layer.head`, or features."""
    layers: list[int] = field(repr=False)
    """The layer of each row."""
    places: list[str]
    values: Tensor = field(repr=False)
    """The metric, `[rows, places]`: mean over the pairs."""
    effects: Tensor = field(repr=False)
    """`values` minus the metric of the unchanged run."""
    low: Tensor = field(repr=False)
    """Lower ends of the effects' 95% intervals over pairs; NaN for a single pair."""
    high: Tensor = field(repr=False)
    clean: float
    """The metric of the clean prompts, mean over the pairs."""
    corrupted: float
    """The same of the corrupted prompts, or of the clean ones under noise."""
    pairs: int
    answers: list[list[str]] = field(repr=False)
    """The likeliest next token under each change, of the first pair; empty for estimates."""
    seconds: float

    @property
    def recovered(self) -> Tensor:
        """The effects as shares of the way from the changed prompt's metric to the other one's, `[rows, places]`."""
        way = self.corrupted - self.clean if self.into == "clean" else self.clean - self.corrupted
        return self.effects / way if way else torch.full_like(self.effects, torch.nan)

    def largest(self, count: int = 10) -> list[tuple[str, str, float]]:
        """Row, place and effect of the cells with the largest effects, of either sign."""
        order = self.effects.abs().flatten().argsort(descending=True, stable=True)[:count].tolist()
        cells = [divmod(one, len(self.places)) for one in order]
        return [(self.rows[row], self.places[place], float(self.effects[row, place])) for row, place in cells]

    def correlation(self, other: PositionPatching) -> float:
        """Pearson's correlation of the effects with those of another grid of the same cells; NaN where one is flat."""
        from workbench.circuits.errors import TaskError

        if (self.rows, self.places) != (other.rows, other.places):
            raise TaskError("The grids have other rows or places; patch the same component of the same alignment.")
        both = torch.stack([self.effects.flatten(), other.effects.flatten()]).double()
        if both.shape[1] < 2 or bool((both.std(1) == 0).any()):
            return float("nan")
        return float(torch.corrcoef(both)[0, 1])

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each cell."""
        shares = self.recovered
        for row, name in enumerate(self.rows):
            for place, where in enumerate(self.places):
                yield {
                    "row": name,
                    "layer": self.layers[row],
                    "place": where,
                    "value": float(self.values[row, place]),
                    "effect": float(self.effects[row, place]),
                    "recovered": float(shares[row, place]),
                    "low": float(self.low[row, place]),
                    "high": float(self.high[row, place]),
                    "answer": self.answers[row][place] if self.answers else "",
                }

    def figure(self) -> Figure:
        """The effects as a heat map, places along one side and rows along the other."""
        from workbench.figures.circuits import position_map

        return position_map(self.effects.tolist(), self.rows, self.places, self.metric, self.answers)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        plain = {name: getattr(self, name) for name in ("component", "method", "into", "metric", "rows", "places")}
        grids = {name: getattr(self, name).tolist() for name in ("values", "effects", "low", "high")}
        ends = {name: getattr(self, name) for name in ("clean", "corrupted", "pairs", "answers", "seconds")}
        return {**plain, "layers": self.layers, **grids, **ends}
