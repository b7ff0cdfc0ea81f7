"""JumpReLU dictionaries: each latent has a threshold of its own, learned with the weights; see `jumping.py`."""

from __future__ import annotations

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.jumping import L0, JumpReLU
from workbench.dictionaries.settings import Band, Width


class JumpReLUSAE(SparseCoder):
    """Sparse autoencoder with a learned threshold for each latent.

    Args:
        d_in: width of the activations.
        width: number of latents.
        l0: sparsity coefficient.
        bandwidth: width of the band around the threshold in which its gradient is estimated.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "jumprelu"

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l0: L0 = 1.0,
        *,
        bandwidth: Band = 0.05,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = JumpReLU(width, l0, bandwidth)
        super().__init__(d_in, width, part, reads=hook_point, writes=hook_point, name=name, seed=seed)


class JumpReLUTranscoder(SparseCoder):
    """Transcoder with a learned threshold for each latent.

    Args:
        d_in: width of the activations that are read.
        width: number of latents.
        l0: sparsity coefficient.
        bandwidth: width of the band around the threshold in which its gradient is estimated.
        d_out: width of the activations that are written; None for `d_in`.
        reads: hook point of the activations that are read.
        writes: hook point of the activations that are written.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "jumprelu_transcoder"
    transcodes = True
    centred = False

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l0: L0 = 1.0,
        *,
        bandwidth: Band = 0.05,
        d_out: Positive | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        part = JumpReLU(width, l0, bandwidth)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)


class JumpReLUSkipTranscoder(JumpReLUTranscoder):
    """`JumpReLUTranscoder` with a linear path past the codes, which starts at 0."""

    kind = "jumprelu_skip_transcoder"
    skip = True
