"""JumpReLU as an activation function: each latent has a threshold of its own, learned together with the weights.

Rajamanoharan et al., "Jumping ahead" (2024), arXiv 2407.14435. The loss is the squared error plus l0 times the number
of active latents. Both jump at the threshold; its gradient is estimated from the pre-activations in a band around it.
The threshold itself is learned (not its logarithm, with which Adam hardly moves it) and kept from falling below 0.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from workbench.dictionaries.activations import Activation, codes_above
from workbench.dictionaries.settings import Coefficient, Setting
from workbench.dictionaries.sparse import PIECE, DenseEntries, Entries, entries_where, is_sparse

START = 0.01
"""Threshold at the start, in units of the activations' size."""
L0 = Annotated[Coefficient, Setting("L0 penalty", "Higher makes fewer latents active.")]
"""Sparsity coefficient."""


class JumpReLU(Activation):
    """Values are the pre-activations above the latent's threshold.

    Args:
        width: number of latents.
        l0: coefficient of the penalty, the number of active latents.
        bandwidth: width of the band around the threshold, in units of the activations' size.
    """

    resamples = True
    only_learns = ("l0", "bandwidth")

    def __init__(self, width: int, l0: float = 1.0, bandwidth: float = 0.05):
        super().__init__()
        self.l0 = l0
        self.bandwidth = bandwidth
        self._inside: Tensor | None = None
        """Which entries of the current batch are in the band; kept from `entries` to `backward`."""
        self.threshold = nn.Parameter(torch.full((width,), START), requires_grad=False)

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """As many columns as the fullest row has latents above their thresholds."""
        return codes_above(pre, self.threshold)

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """The active latents, and with value 0 those in the lower half of the band; where they are many, in the place
        of all pre-activations."""
        half = self.bandwidth * unit / 2
        near = pre > self.threshold - half
        if is_sparse(near):
            entries = entries_where(pre, near)
            threshold = entries.spread(self.threshold)
            entries.values = torch.where(entries.pre > threshold, entries.pre, 0)
            self._inside = entries.pre < threshold + half
            return entries
        self._inside = near.logical_and_(pre < self.threshold + half)
        pre.mul_(pre > self.threshold)
        return DenseEntries(pre, pre)

    def backward(self, entries: Entries, slopes: Tensor, unit: float, strength: float) -> tuple[Tensor, float]:
        """Adds l0 * mean over rows of the number of active latents; gives the threshold its gradient."""
        weight = self.l0 * strength / entries.batch
        band = self.bandwidth * unit
        inside, self._inside = self._inside, None
        assert inside is not None
        if isinstance(entries, DenseEntries):
            steep = torch.zeros_like(self.threshold)  # [width]
            many = torch.zeros_like(self.threshold)
            for some, near in zip(slopes.split(PIECE), inside.split(PIECE), strict=True):
                steep += (some * near).sum(0)
                many += near.sum(0)
        else:
            steep, many = entries.per_latent(slopes * inside), entries.per_latent(inside.to(slopes.dtype))
        self.threshold.grad = (self.threshold * steep + weight * many) / -band
        return entries.where_active(slopes), weight * int(entries.fired().sum())

    def initialise(self, unit: float) -> None:
        """All thresholds as at the start."""
        self.threshold.fill_(START * unit)

    def forget(self, latents: Tensor, unit: float) -> None:
        """These thresholds as at the start."""
        self.threshold[latents] = START * unit

    def scale(self, factors: Tensor) -> None:
        """Thresholds times the factors."""
        self.threshold.mul_(factors)

    def constrain(self) -> None:
        """No threshold below 0."""
        self.threshold.clamp_(min=0)

    def settings(self) -> dict[str, Any]:
        """`l0`, `bandwidth`."""
        return {"l0": self.l0, "bandwidth": self.bandwidth}
