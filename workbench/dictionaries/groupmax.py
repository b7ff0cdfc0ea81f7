"""GroupMax: the latents are k groups of neighbours, and each activation keeps the highest latent of each group.

As in EleutherAI's sparsify (https://github.com/EleutherAI/sparsify, `sparsify/fused_encoder.py`): TopK without a sort,
since the highest of a group is found by itself. Latents that no longer fire learn by AuxK, as in TopK.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.activations import Activation, check_even
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.settings import Coefficient, Setting, Width
from workbench.dictionaries.sparse import Entries, entries_at

Groups = Annotated[Positive, Setting("Groups", "One latent of each group may be active; they divide the latents.")]
"""Number of groups."""


class GroupMax(Activation):
    """Values are the highest pre-activation of each group of neighbouring latents, where it is positive.

    Args:
        width: number of latents.
        k: number of groups; a divisor of `width`.
        auxiliary: coefficient of the auxiliary loss; 1/32 as in TopK.
    """

    only_learns = ("auxiliary",)

    def __init__(self, width: int, k: int = 32, auxiliary: float = 1 / 32):
        super().__init__()
        if width % k:
            raise DictionaryError(f"k is a number of groups that divides the width, {width:,}, and {k:,} does not.")
        self.k = k
        self.auxiliary = auxiliary

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Always k columns, one for each group."""
        latents = self._highest(pre)
        return pre.gather(1, latents).relu(), latents

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """k for each row."""
        entries = entries_at(pre, self._highest(pre))
        entries.values = entries.pre.relu()
        return entries

    def _highest(self, pre: Tensor) -> Tensor:
        """The latent of each group with the highest pre-activation: `[batch, k]`."""
        size = pre.shape[1] // self.k
        within = pre.detach().unflatten(1, (self.k, size)).argmax(2)
        return within + within.new_tensor(range(0, pre.shape[1], size))

    def scale(self, factors: Tensor) -> None:
        """Equal factors within each group only."""
        grouped = factors.view(self.k, -1)
        check_even(grouped[(grouped.amax(1) / grouped.amin(1)).argmax()])

    def settings(self) -> dict[str, Any]:
        """`k`, `auxiliary`."""
        return {"k": self.k, "auxiliary": self.auxiliary}


class GroupMaxSAE(SparseCoder):
    """Sparse autoencoder with at most one active latent of each of k groups.

    Args:
        d_in: width of the activations.
        width: number of latents.
        k: number of groups; a divisor of `width`.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "groupmax"

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Groups = 32,
        *,
        auxiliary: Coefficient = 1 / 32,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = GroupMax(width, k, auxiliary)
        super().__init__(d_in, width, part, reads=hook_point, writes=hook_point, name=name, seed=seed)


class GroupMaxTranscoder(SparseCoder):
    """Transcoder with at most one active latent of each of k groups.

    Args:
        d_in: width of the activations that are read.
        width: number of latents.
        k: number of groups; a divisor of `width`.
        auxiliary: coefficient of the auxiliary loss on dead latents.
        d_out: width of the activations that are written; None for `d_in`.
        reads: hook point of the activations that are read.
        writes: hook point of the activations that are written.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "groupmax_transcoder"
    transcodes = True
    centred = False

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        k: Groups = 32,
        *,
        auxiliary: Coefficient = 1 / 32,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = GroupMax(width, k, auxiliary)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)


class GroupMaxSkipTranscoder(GroupMaxTranscoder):
    """`GroupMaxTranscoder` with a linear path past the codes, which starts at 0."""

    kind = "groupmax_skip_transcoder"
    skip = True
