"""ReLU with an L1 penalty: the first sparse autoencoders, and the first transcoders.

Bricken et al., "Towards Monosemanticity" (2023), https://transformer-circuits.pub/2023/monosemantic-features. Decoder
rows have unit norm, so that the penalty can't be evaded by small values with long rows; latents that never fire are
resampled. Transcoders: Dunefsky, Chlenski, Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv
2406.11944.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.activations import Activation, padded_codes
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.settings import L1, Width
from workbench.dictionaries.sparse import DenseEntries, Entries, entries_where, is_sparse


class ReLU(Activation):
    """Values are the positive pre-activations.

    Args:
        l1: coefficient of the penalty, the sum of a row's values in units of the activations' size.
    """

    resamples = True
    only_learns = ("l1",)

    def __init__(self, l1: float = 1.0):
        super().__init__()
        self.l1 = l1

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """As many columns as the fullest row has positive pre-activations."""
        return padded_codes(pre, pre > 0)

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """The positive pre-activations; where they are many, in the place of all of them."""
        mask = pre > 0
        if is_sparse(mask):
            return entries_where(pre, mask)
        pre.relu_()
        return DenseEntries(pre, pre)

    def backward(self, entries: Entries, slopes: Tensor, unit: float, strength: float) -> tuple[Tensor, float]:
        """Adds l1 * mean over rows of the sum of values / unit."""
        weight = self.l1 * strength / unit / entries.batch
        return entries.where_active(slopes.add_(weight)), weight * float(entries.values.sum())

    def settings(self) -> dict[str, Any]:
        """`l1`."""
        return {"l1": self.l1}


class StandardSAE(SparseCoder):
    """Sparse autoencoder with ReLU and an L1 penalty.

    Args:
        d_in: width of the activations.
        width: number of latents.
        l1: sparsity coefficient.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "standard"
    also_called = ("relu",)

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l1: L1 = 1.0,
        *,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(d_in, width, ReLU(l1), reads=hook_point, writes=hook_point, name=name, seed=seed)


class Transcoder(SparseCoder):
    """Transcoder with ReLU and an L1 penalty.

    Args:
        d_in: width of the activations that are read.
        width: number of latents.
        l1: sparsity coefficient.
        d_out: width of the activations that are written; None for `d_in`.
        reads: hook point of the activations that are read.
        writes: hook point of the activations that are written.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "transcoder"
    transcodes = True
    centred = False

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l1: L1 = 1.0,
        *,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(d_in, width, ReLU(l1), d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)


class SkipTranscoder(Transcoder):
    """`Transcoder` with a linear path past the codes, which starts at 0."""

    kind = "skip_transcoder"
    skip = True
