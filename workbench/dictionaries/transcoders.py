"""Transcoders: sparse dictionaries that read at one hook point and write at another, such as an MLP's two ends.

Dunefsky, Chlenski, Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944. The skip path
is that of Paulo, Shabalin, Belrose, "Transcoders beat sparse autoencoders for interpretability" (2025), arXiv
2501.18823. As in SAELens nothing is subtracted from the input; a shift of it is the same as one of `b_enc`. SAELens has
no TopK transcoder, but its TopK autoencoder with `apply_b_dec_to_input` off is the same function where d_in = d_out.
"""

from __future__ import annotations

from typing import Any

from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.jumprelu import JumpReLU
from workbench.dictionaries.relu import ReLU
from workbench.dictionaries.topk import TopK


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
    centred = False

    def __init__(
        self,
        d_in: int,
        width: int,
        l1: float = 1.0,
        *,
        d_out: int | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: int | None = 0,
    ):
        super().__init__(d_in, width, ReLU(l1), d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)


class SkipTranscoder(Transcoder):
    """`Transcoder` with a linear path past the codes, which starts at 0."""

    kind = "skip_transcoder"
    skip = True


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
    centred = False

    def __init__(
        self,
        d_in: int,
        width: int,
        k: int = 32,
        *,
        auxiliary: float = 1 / 32,
        d_out: int | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: int | None = 0,
    ):
        part = TopK(width, k, auxiliary)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)

    def config(self) -> dict[str, Any]:
        """As SAELens's `topk` where that is the same function; else under a name that SAELens refuses."""
        same = not self.skip and self.d_in == self.d_out
        return super().config() | {"architecture": "topk" if same else self.kind}


class TopKSkipTranscoder(TopKTranscoder):
    """`TopKTranscoder` with a linear path past the codes, which starts at 0."""

    kind = "topk_skip_transcoder"
    skip = True


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
    centred = False

    def __init__(
        self,
        d_in: int,
        width: int,
        l0: float = 1.0,
        *,
        bandwidth: float = 0.05,
        d_out: int | None = None,
        reads: str = "",
        writes: str = "",
        name: str = "",
        seed: int | None = 0,
    ):
        part = JumpReLU(width, l0, bandwidth)
        super().__init__(d_in, width, part, d_out=d_out, reads=reads, writes=writes, name=name, seed=seed)


class JumpReLUSkipTranscoder(JumpReLUTranscoder):
    """`JumpReLUTranscoder` with a linear path past the codes, which starts at 0."""

    kind = "jumprelu_skip_transcoder"
    skip = True
