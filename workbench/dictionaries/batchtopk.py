"""BatchTopK: a batch of B activations keeps its k·B highest values, so that hard activations may use more latents.

Bussmann, Leask, Nanda, "BatchTopK sparse autoencoders" (2024), arXiv 2412.06410. Outside training there is no batch:
latents are active above a threshold, which is the running mean of each batch's lowest kept value until the end of the
training sets it from the last batch. On disk it is the
JumpReLU dictionary with that threshold, as SAELens writes it.

Matryoshka: Bussmann, Nabeshima, Karvonen, Nanda, "Learning multi-level features with Matryoshka sparse autoencoders"
(2025), arXiv 2503.17547. Beside the whole dictionary its first latents reconstruct alone, at several widths, so that
they stay general. The loss is the sum of the squared errors at all widths, as in SAELens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, PositiveNumber, checked
from workbench.dictionaries.activations import Activation, check_even, codes_above
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.settings import Coefficient, Setting, Width
from workbench.dictionaries.sparse import Entries, entries_where

RATE = 0.01
"""Weight of a new batch in the threshold's running mean, as in SAELens."""
Average = Annotated[PositiveNumber, Setting("Active per token", "How many latents may be active, on average.")]
"""Active latents per activation."""
Levels = Annotated[Positive, Setting("Levels", "At how many widths the first latents reconstruct alone.")]
"""Number of widths."""


class BatchTopK(Activation):
    """In training the highest k·batch pre-activations of the batch; else those above the threshold.

    Args:
        width: number of latents.
        k: active latents per activation, on average; above 0, at most `width`.
        auxiliary: coefficient of the auxiliary loss on dead latents.
    """

    threshold: Tensor
    only_learns = ("k", "auxiliary")

    def __init__(self, width: int, k: float = 32, auxiliary: float = 1 / 32):
        super().__init__()
        if k > width:
            raise DictionaryError(f"k is a number above 0 and up to the width, {width:,}, not {k!r}.")
        self.k = k
        self.auxiliary = auxiliary
        self.register_buffer("threshold", torch.zeros(width))

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """As many columns as the fullest row has latents above the threshold."""
        return codes_above(pre, self.threshold)

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """The highest k·batch positive pre-activations; moves the threshold."""
        wanted = max(1, int(self.k * len(pre)))
        threshold = float(self.threshold[0])
        mask = pre > 0.9 * threshold  # a first sieve, close to what will be kept
        if threshold > 0 and int(mask.count_nonzero()) < wanted:
            mask = pre > 0
        entries = entries_where(pre, mask)
        if len(entries.values) > wanted:
            lowest = entries.values.topk(wanted, sorted=False).values.min()
            entries = entries.only(entries.values >= lowest)
        if len(entries.values):
            lowest = entries.values.min()
            self.threshold.copy_(lowest if threshold == 0 else self.threshold + RATE * (lowest - self.threshold))
        return entries

    def initialise(self, unit: float) -> None:
        """The first batch sets the threshold."""
        self.threshold.zero_()

    def scale(self, factors: Tensor) -> None:
        """Equal factors only."""
        check_even(factors)
        self.threshold.mul_(factors)

    def calibrate(self, pre: Iterator[Tensor], rows: int) -> None:
        """The threshold above which k pre-activations of each row are, on average."""
        wanted = max(1, int(self.k * rows))
        highest = self.threshold.new_zeros(0)
        for piece in pre:  # [piece, width]
            highest = torch.cat([highest, piece[piece > 0]])
            if len(highest) > wanted:
                highest = highest.topk(wanted, sorted=False).values
        lowest = highest.min() if len(highest) == wanted else self.threshold.new_zeros(())
        self.threshold.fill_(float(torch.nextafter(lowest, torch.zeros_like(lowest))))

    def settings(self) -> dict[str, Any]:
        """`k`, `auxiliary`."""
        return {"k": self.k, "auxiliary": self.auxiliary}


class BatchTopKSAE(SparseCoder):
    """Sparse autoencoder with k active latents per activation on average.

    Args:
        d_in: width of the activations.
        width: number of latents.
        k: active latents per activation on average.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "batchtopk"
    architecture = "jumprelu"

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Average = 32,
        *,
        auxiliary: Coefficient = 1 / 32,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = BatchTopK(width, k, auxiliary)
        super().__init__(d_in, width, part, reads=hook_point, writes=hook_point, name=name, seed=seed)


class MatryoshkaBatchTopK(BatchTopK):
    """`BatchTopK` of a dictionary whose first latents learn to reconstruct alone.

    Args:
        width: number of latents.
        k: as in `BatchTopK`.
        auxiliary: as in `BatchTopK`.
        widths: how many of the first latents reconstruct, ascending; the last is `width`.
    """

    only_learns = (*BatchTopK.only_learns, "widths")

    def __init__(self, width: int, k: float, auxiliary: float, widths: list[int]):
        super().__init__(width, k, auxiliary)
        if widths != sorted(set(widths)) or widths[-1:] != [width]:
            raise DictionaryError(f"widths ascend up to the width, {width:,}, and are not {widths}.")
        self.widths = widths

    def settings(self) -> dict[str, Any]:
        """`k`, `auxiliary`, `widths`."""
        return super().settings() | {"widths": self.widths}


class MatryoshkaBatchTopKSAE(SparseCoder):
    """Sparse autoencoder with k active latents per activation on average, whose first latents reconstruct alone.

    Args:
        d_in: width of the activations.
        width: number of latents.
        k: active latents per activation on average.
        levels: number of widths at which it reconstructs, each half of the next.
        widths: these widths themselves, ascending; the last is `width`. None for `levels`.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "matryoshka_batchtopk"
    architecture = "jumprelu"
    activation: MatryoshkaBatchTopK

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Average = 32,
        levels: Levels = 4,
        *,
        widths: Sequence[Positive] | None = None,
        auxiliary: Coefficient = 1 / 32,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        halves = {max(1, width >> level) for level in range(min(levels, width.bit_length()))}
        part = MatryoshkaBatchTopK(width, k, auxiliary, sorted(halves) if widths is None else list(widths))
        super().__init__(d_in, width, part, reads=hook_point, writes=hook_point, name=name, seed=seed)

    @property
    def prefixes(self) -> Sequence[int]:
        """Widths below the whole at which it reconstructs."""
        return self.activation.widths[:-1]
