"""Activation functions of dictionaries as small parts: which latents are active, with which values and gradients.

A part knows nothing of encoders and decoders. Everything is in the activations' own units; `unit` says how large those
are, so that sparsity coefficients mean the same for any model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.sparse import Entries, flat_places

EVEN = 2e-3
"""Largest relative difference of factors that count as equal: about the rounding of 16 bits."""


class Activation(nn.Module):
    """What turns pre-activations into sparse values."""

    resamples: bool = False
    """Whether dead latents are revived by resampling; else by the auxiliary loss."""
    only_learns: tuple[str, ...] = ()
    """Settings that decide how it learns and nothing of what it computes."""
    auxiliary: float = 0.0
    """Coefficient of the auxiliary loss on dead latents."""

    @abstractmethod
    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Values and latents, both `[batch, k]`, of pre-activations `[batch, width]`."""

    @abstractmethod
    def entries(self, pre: Tensor, unit: float) -> Entries:
        """The entries of a training batch; those with value 0 take part in no reconstruction. May write into `pre`."""

    def backward(self, entries: Entries, slopes: Tensor, unit: float, strength: float) -> tuple[Tensor, float]:
        """From the loss's gradient by the values to that by the pre-activations; adds the penalty on density.

        Args:
            entries: what `entries` gave.
            slopes: gradient of the reconstruction loss by each value, `[entries]`; may be written into.
            unit: typical size of one coordinate of the activations.
            strength: share of the penalty that applies, 0 to 1, for warming up.

        Returns:
            The gradient by the pre-activations `[entries]`, and the penalty. Gradients of the part's own parameters go
            into their `.grad`.
        """
        return entries.where_active(slopes), 0.0

    def initialise(self, unit: float) -> None:
        """Set the part's parameters for activations of this size."""

    def forget(self, latents: Tensor, unit: float) -> None:
        """Set the part's parameters of some latents, `[dead]`, as at the start."""

    def scale(self, factors: Tensor) -> None:
        """Keep the same latents active where each latent's pre-activation is multiplied by a factor.

        Args:
            factors: above 0, `[width]`.

        Raises:
            DictionaryError: latents compete, so that unequal factors choose others.
        """

    def calibrate(self, pre: Iterator[Tensor], rows: int) -> None:
        """Set what only applies outside training, from pre-activations `[rows, width]` in pieces."""

    def constrain(self) -> None:
        """Bring the part's parameters back into their range after an optimiser's step."""

    def settings(self) -> dict[str, Any]:
        """The part's constructor arguments, as plain data."""
        return {}


def check_even(factors: Tensor) -> None:
    """Raise `DictionaryError` unless factors `[width]` are equal within `EVEN`."""
    low, high = float(factors.min()), float(factors.max())
    if high > low * (1 + EVEN):
        raise DictionaryError(
            f"Training keeps decoder rows at norm 1, and here they have {low:.3g} to {high:.3g}. This kind keeps the "
            "highest pre-activations, so other latents would be kept after the change; train a new dictionary, or give "
            "one whose decoder rows have norm 1."
        )


def codes_above(pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the pre-activations `[batch, width]` above each latent's threshold `[width]`, and above 0."""
    return padded_codes(pre, pre > threshold.clamp(min=0))


def padded_codes(pre: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Codes wherever a mask is true, with as many columns as the fullest row needs; value 0 where a row has fewer.

    Args:
        pre: pre-activations, `[batch, width]`.
        mask: `[batch, width]`.

    Returns:
        Values and latents, `[batch, columns]`, at least one column.
    """
    flat = flat_places(mask.detach())
    rows = flat // pre.shape[1]
    counts = torch.bincount(rows, minlength=len(pre))  # [batch]
    columns = max(1, int(counts.max())) if len(pre) else 1
    slots = torch.arange(len(flat), device=pre.device) - (counts.cumsum(0) - counts)[rows]
    latents = flat.new_zeros(len(pre), columns)
    latents[rows, slots] = flat - rows * pre.shape[1]
    present = torch.arange(columns, device=pre.device) < counts[:, None]  # [batch, columns]
    return torch.where(present, pre.gather(1, latents), 0), latents
