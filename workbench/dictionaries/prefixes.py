"""Losses of the first latents alone, in dictionaries that learn to reconstruct with fewer latents than they have.

Bussmann et al. 2025, arXiv 2503.17547. Entries must be a list, as those of `BatchTopK` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workbench.dictionaries.sparse import Entries, SparseEntries
from workbench.dictionaries.variance import squares


@dataclass
class Prefix:
    """What the first latents reconstruct alone."""

    width: int
    """How many latents."""
    mask: Tensor
    """Which of the batch's entries are theirs, `[n]`."""
    entries: SparseEntries
    """These entries."""
    gradient: Tensor
    """Of the loss by the reconstruction, `[batch, d_out]`."""
    loss: float
    """Mean over the batch of the squared error, in units of the activations' size."""

    def add_to_decoder(self, gradient: Tensor) -> None:
        """Add the loss's gradient to that of the decoder `[width, d_out]`."""
        more = gradient.new_empty(gradient.shape)
        self.entries.outer(self.entries.values, self.gradient, out=more)
        gradient += more


def prefixes(
    widths: Sequence[int], entries: Entries, directions: Tensor, spread: Tensor, square: float
) -> list[Prefix]:
    """The prefixes of a batch.

    Args:
        widths: how many of the first latents, for each prefix.
        entries: of the batch; a list.
        directions: the decoder, `[width, d_out]`.
        spread: what is to be reconstructed, less the decoder's bias, `[batch, d_out]`.
        square: the activations' size squared, times the batch.
    """
    found = []
    for width in widths:
        assert isinstance(entries, SparseEntries)
        mask = entries.latents < width
        some = entries.only(mask)
        error = some.decode(directions).sub_(spread)
        loss = squares(error) / square
        found.append(Prefix(width, mask, some, error.mul_(2 / square), loss))
    return found
