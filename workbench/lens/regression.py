"""Ridge regression of the end of the stream on the stream behind each layer: where the maps of a tuned lens begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.precision import float64_device

RIDGE = 0.03
"""The penalty on each coordinate's weights, as a share of the coordinate's variance."""


class Regression:
    """The moments of a sample, from which follow the maps `h + A h + b` of least squared distance to the end.

    A is held near 0, which is the logit lens, by a penalty. Values are taken from the mean of the first block, so that
    sums in float32 keep the variance of coordinates with large means.

    Args:
        count: layers.
        width: of the stream.
        device: of the sums.
    """

    def __init__(self, count: int, width: int, device: torch.device):
        self.squares = torch.zeros(count, width, width, device=device)
        self.products = torch.zeros(count, width, width, device=device)
        self.means = torch.zeros(count, 2, width, device=device)
        self.rows = torch.zeros((), device=device)
        self.shift: Tensor | None = None
        """Of the streams, and of the end less the stream: `[layers, 2, width]`."""

    def begin(self, streams: Sequence[Tensor], end: Tensor) -> Tensor:
        """Set the shift from a first block, and return it; arguments as in `add`."""
        self.shift = torch.stack([torch.stack([x.float().mean(0), (end - x).float().mean(0)]) for x in streams])
        return self.shift

    def add(self, streams: Sequence[Tensor], end: Tensor) -> None:
        """Add a block of tokens.

        Args:
            streams: behind each layer, `[tokens, width]` each.
            end: behind the last layer, `[tokens, width]`.
        """
        assert self.shift is not None
        for place, stream in enumerate(streams):
            x = stream.float()
            missing = end.float() - x - self.shift[place, 1]
            x = x - self.shift[place, 0]
            self.squares[place].addmm_(x.T, x)
            self.products[place].addmm_(x.T, missing)
            self.means[place] += torch.stack([x.sum(0), missing.sum(0)])
        self.rows += len(end)

    def sums(self) -> list[Tensor]:
        """What processes add up before `solve`."""
        return [self.squares, self.products, self.means, self.rows]

    def solve(self, place: int) -> tuple[Tensor, Tensor]:
        """A `[width, width]` and b `[width]` of a layer, in float32."""
        assert self.shift is not None
        home = float64_device(self.rows.device)
        moments = self.squares[place], self.products[place], self.means[place], self.shift[place]
        squares, products, means, shift = (one.to(home).double() for one in moments)
        rows = self.rows.to(home).double()
        means = means / rows
        covariance = squares / rows - torch.outer(means[0], means[0])
        crossed = products / rows - torch.outer(means[0], means[1])
        variance = covariance.diagonal().clamp(min=0)
        penalty = RIDGE * variance + variance.max() * 1e-9 + torch.finfo(torch.float32).tiny
        weight = torch.linalg.solve(covariance + torch.diag(penalty), crossed).T
        centre = shift[0] + means[0]
        bias = shift[1] + means[1] - weight @ centre
        return weight.float().to(self.rows.device), bias.float().to(self.rows.device)
