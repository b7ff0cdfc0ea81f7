"""Whether activations vary at all, and the share of their variance that a reconstruction leaves unexplained."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.core.precision import in_float64

SAME = 1e-5
"""Points whose mean distance from their mean is a smaller share of their length differ by rounding only."""
FEW = 1e-3
"""Share of the squared lengths below which a difference of sums in 32 bits is not exact enough."""


def unexplained(squared: float, points: Tensor, offset: Tensor | None = None) -> float:
    """The share of the variance of a batch that is not explained; nan where activations differ by rounding only.

    Args:
        squared: the squared error, summed over the batch.
        points: the activations `[n, d]`, less the offset.
        offset: `[d]`; None for zeros.
    """
    count, middle = len(points), points.mean(0)
    square = squares(points)
    variance = square - count * squares(middle)
    if variance < FEW * square:
        exact = in_float64(points)
        variance = float((exact - exact.mean(0)).square().sum())
    if offset is not None:
        square = max(0.0, square + 2 * count * float(offset @ middle) + count * squares(offset))
    return squared / variance if variance > SAME**2 * square else float("nan")


def squares(values: Tensor) -> float:
    """Sum of squares over all elements; by rows first, which is fast where these are not one behind the other too."""
    norms = torch.linalg.vector_norm(values, dim=-1) if values.ndim > 1 else values
    return float(torch.linalg.vector_norm(norms)) ** 2
