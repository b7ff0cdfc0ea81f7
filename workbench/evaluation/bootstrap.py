"""Confidence intervals by a bootstrap over texts: the tokens of one text are not independent, whole texts are."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn_weights(texts: int, resamples: int, seed: int) -> Tensor:
    """How often each text counts in each draw with replacement: `[1 + resamples, texts]`, the first row all ones."""
    chance = torch.Generator().manual_seed(seed)
    drawn = torch.randint(texts, (resamples, texts), generator=chance)
    weights = torch.ones(1 + resamples, texts).double()  # the first row is what was measured
    weights[1:] = torch.zeros_like(weights[1:]).scatter_add_(1, drawn, torch.ones_like(weights[1:]))
    return weights


def interval(values: Tensor) -> tuple[float, float]:
    """The 95% interval of a measure: percentiles of its values `[1 + resamples]` in all draws but the first."""
    low, high = values[1:].nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high
