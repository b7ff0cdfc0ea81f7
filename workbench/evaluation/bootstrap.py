"""Sums over the tokens of each text, and 95% confidence intervals by a bootstrap over texts.

Whole texts are drawn with replacement, because the tokens of one text are not independent (Efron & Tibshirani, "An
Introduction to the Bootstrap", 1993, percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Shown
from workbench.core.precision import in_float64
from workbench.evaluation.errors import EvaluationError

Measures = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From sums by name, `[draws]` or `[draws, width]` each, to measures by name, `[draws]` or `[draws, width]` each."""


class TextSums:
    """Sums over tokens by name, kept apart by text, in float64."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, texts: Tensor, **values: Tensor) -> None:
        """Add values of tokens to the sums of their texts.

        Args:
            texts: the number of each token's text, `[n]`.
            values: by name, `[n]` or `[n, width]` each.
        """
        numbers, inverse = texts.unique(return_inverse=True)
        rows = torch.tensor([self._rows.setdefault(text, len(self._rows)) for text in numbers.tolist()])
        places = rows.to(inverse.device)[inverse]
        for name, value in values.items():
            exact = in_float64(value)
            old = self._sums.get(name, exact.new_zeros(0, *value.shape[1:]))
            grown = old.new_zeros(len(self._rows), *old.shape[1:])
            grown[: len(old)] = old
            self._sums[name] = grown.index_add_(0, places.to(exact.device), exact)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, `[texts]` or `[texts, width]` each, by rising number of the text; 0 where nothing came."""
        order = torch.tensor([row for _, row in sorted(self._rows.items())], dtype=torch.long)
        by_name = {}
        for name, sums in self._sums.items():
            whole = sums.new_zeros(len(order), *sums.shape[1:])
            whole[: len(sums)] = sums
            by_name[name] = whole.cpu()[order]
        return by_name


@dataclass(frozen=True)
class Estimate(Shown):
    """A measure with its 95% confidence interval."""

    value: Tensor
    """On all texts: `[]`, or `[width]`."""
    low: Tensor
    high: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of a single number's interval."""
        return float(self.low), float(self.high)

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """The ends of the interval of each of several numbers."""
        return list(zip(self.low.tolist(), self.high.tolist(), strict=True))


@checked(EvaluationError)
def bootstrap(
    sums: Mapping[str, Tensor], measures: Measures, resamples: Positive = 1000, seed: Natural = 0
) -> dict[str, Estimate]:
    """Measures of all texts with percentile intervals over draws of the texts, by the measures' names.

    Args:
        sums: of each text, by name: `[texts]` or `[texts, width]`, from `TextSums.tensors`.
        measures: computes the measures from the sums of one draw or many.
        resamples: draws with replacement, each of as many texts as there are.
        seed: of the draws.

    Raises:
        EvaluationError: no texts, or sums of different numbers of texts.
    """
    counts = {len(one) for one in sums.values()}
    if len(counts) != 1 or not min(counts):
        raise EvaluationError(f"A bootstrap takes sums over the same texts, at least one, not over {sorted(counts)}.")
    weights = _draw_weights(counts.pop(), resamples, seed)
    drawn = {}
    for name, one in sums.items():
        total = weights @ one.double().reshape(len(one), -1)
        drawn[name] = total.reshape(len(weights), *one.shape[1:])
    ends = torch.tensor([0.025, 0.975]).double()
    estimates = {}
    for name, values in measures(drawn).items():
        low, high = values[1:].nanquantile(ends, dim=0)
        estimates[name] = Estimate(values[0], low, high)
    return estimates


def _draw_weights(texts: int, resamples: int, seed: int) -> Tensor:
    """How often each text counts in each draw: `[1 + resamples, texts]`; the first row is all texts once."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(texts, (resamples, texts), generator=generator)
    weights = torch.ones(1 + resamples, texts).double()
    weights[1:] = torch.zeros_like(weights[1:]).scatter_add_(1, drawn, torch.ones_like(weights[1:]))
    return weights
