"""TopK: each activation keeps its k highest latents, so that L0 is set and not a matter of penalties.

Gao et al., "Scaling and evaluating sparse autoencoders" (2024), arXiv 2406.04093. Latents that no longer fire learn, by
an auxiliary loss, to explain what the others leave over (AuxK).

SAELens has no TopK transcoder, but its TopK autoencoder with `apply_b_dec_to_input` off is the same function where d_in
and d_out are the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.activations import Activation, check_even
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.normalising import NONE
from workbench.dictionaries.settings import Active, Coefficient, Width
from workbench.dictionaries.sparse import Entries, entries_at, top_k


class TopK(Activation):
    """Values are the k highest pre-activations of each row, where they are positive.

    Args:
        width: number of latents.
        k: how many may be active, 1 to `width`.
        auxiliary: coefficient of the auxiliary loss; 1/32 in the paper.
    """

    only_learns = ("auxiliary",)

    def __init__(self, width: int, k: int = 32, auxiliary: float = 1 / 32):
        super().__init__()
        if k > width:
            raise DictionaryError(f"k is a whole number from 1 to the width, {width:,}, not {k:,}.")
        self.k = k
        self.auxiliary = auxiliary

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Always k columns."""
        latents = top_k(pre, self.k)
        return pre.gather(1, latents).relu(), latents

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """k for each row."""
        entries = entries_at(pre, top_k(pre, self.k))
        entries.values = entries.pre.relu()
        return entries

    def scale(self, factors: Tensor) -> None:
        """Equal factors only."""
        check_even(factors)

    def settings(self) -> dict[str, Any]:
        """`k`, `auxiliary`."""
        return {"k": self.k, "auxiliary": self.auxiliary}


class TopKSAE(SparseCoder):
    """Sparse autoencoder with k active latents per activation.

    Args:
        d_in: width of the activations.
        width: number of latents.
        k: active latents per activation.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "topk"

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Active = 32,
        *,
        auxiliary: Coefficient = 1 / 32,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = TopK(width, k, auxiliary)
        super().__init__(d_in, width, part, reads=hook_point, writes=hook_point, name=name, seed=seed)


class TopKTranscoder(SparseCoder):
    """Transcoder with k active latents per activation.

    Args:
        d_in: width of the activations that are read.
        width: number of latents.
        k: active latents per activation.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        d_out: width of the activations that are written; None for `d_in`.
        reads: hook point of the activations that are read.
        writes: hook point of the activations that are written.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "topk_transcoder"
    transcodes = True
    centred = False

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Active = 32,
        *,
        auxiliary: Coefficient = 1 / 32,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = TopK(width, k, auxiliary)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)

    def config(self) -> dict[str, Any]:
        """As SAELens's `topk` where that is the same function; else under a name that SAELens refuses."""
        same = not self.skip and self.d_in == self.d_out and self.normalises == NONE  # which an autoencoder undoes
        return super().config() | {"architecture": "topk" if same else self.kind}


class TopKSkipTranscoder(TopKTranscoder):
    """`TopKTranscoder` with a linear path past the codes, which starts at 0."""

    kind = "topk_skip_transcoder"
    skip = True
