"""How well a projection tells two classes of texts apart: the area under the ROC curve, with an interval over texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.display import Shown

RESAMPLES = 1000


@dataclass(frozen=True)
class Separation(Shown):
    """How well a direction separates texts that it was not found on."""

    auc: float
    """The share of pairs of a positive and a negative sample whose projections stand in this order; ties count half."""
    interval: tuple[float, float]
    """95%, by a bootstrap over the texts of each class; NaN where one text of a class alone is held out."""
    folds: float
    """The mean of the same over folds of the texts that it was found on, each under a direction found on the others; by
    this a hook point is chosen."""
    strength: float
    """The mean projection of the positives less that of the negatives, on the texts that it was found on: steering by
    this much moves one class's mean to the other's."""
    texts: tuple[int, int]
    """The numbers of positive and negative texts that were held out."""


def auc(positives: Tensor, negatives: Tensor) -> float:
    """The share of pairs in which the positive is higher, `[n]` and `[m]`; ties count half."""
    return float(_above(positives, negatives).mean())


def auc_interval(
    positives: Tensor, negatives: Tensor, texts: tuple[Tensor, Tensor], seed: int = 0
) -> tuple[float, float]:
    """The 95% interval of `auc`: whole texts of each class are drawn with replacement.

    It is NaN where a class has one text, which says nothing of others.

    Args:
        positives: projections, `[n]`.
        negatives: projections, `[m]`.
        texts: the number of each sample's text, `[n]` and `[m]`.
        seed: of the draws.
    """
    if any(bool((numbers == numbers[0]).all()) for numbers in texts):
        return float("nan"), float("nan")
    source = torch.Generator().manual_seed(seed)
    weights = [_drawn(numbers, source) for numbers in texts]
    pairs = torch.einsum("bn,nm,bm->b", weights[0], _above(positives, negatives), weights[1])
    shares = pairs / (weights[0].sum(1) * weights[1].sum(1))
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=shares.dtype)).tolist()
    return low, high


def _above(positives: Tensor, negatives: Tensor) -> Tensor:
    """1 where a positive is above a negative, 1/2 where they tie, `[n, m]` float64."""
    gap = positives[:, None] - negatives
    return (gap > 0).double() + (gap == 0).double() / 2


def _drawn(texts: Tensor, source: torch.Generator) -> Tensor:
    """How often each sample is drawn with its text, `[RESAMPLES, n]` float64."""
    numbers, inverse = texts.unique(return_inverse=True)
    draws = torch.randint(len(numbers), (RESAMPLES, len(numbers)), generator=source)
    counts = torch.zeros(RESAMPLES, len(numbers), dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    return counts[:, inverse]
