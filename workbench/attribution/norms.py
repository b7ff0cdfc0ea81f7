"""Norms with their scales on a prompt as constants: linear maps between the stream and what reads or writes it.

    norm(x) = s' * gain * centre(x) + bias

A norm may stand in front of attention and MLP, behind them, or both; a factor in its place is a norm of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.model.language_model import LanguageModel

CLOSE = 2e-3
"""The largest relative difference between the frozen model's tensors and the model's own."""


def close(computed: Tensor, captured: Tensor, within: float = CLOSE) -> bool:
    """Whether vectors `[pos, width]` differ from those captured in the model by no more than this share of them."""
    least = 1e-6 * captured.abs().max()
    return bool(((computed - captured).norm(dim=-1) <= within * captured.norm(dim=-1) + least).all())


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with its scale on the prompt as a constant: `scale * gain * centre(x) + bias`."""

    gain: Tensor
    """`[d_model]`."""
    bias: Tensor
    """`[d_model]`."""
    centres: bool
    """Whether the mean is subtracted."""
    scale: Tensor
    """`[pos]`."""
    at: str = ""
    """The norm's place: its hook points are this and `.hook_in`, `.hook_out`; empty where no norm stands."""

    @classmethod
    def of(cls, model: LanguageModel, at: str, x: Tensor, output: Tensor) -> FrozenNorm:
        """The norm at a place, from its input and output `[pos, d_model]` on the prompt.

        Raises:
            AttributionError: what stands there is no norm.
        """
        gain, bias, centres = model.network.norm_weights(f"{at}.hook_out")
        centred = cls(gain, bias, centres, x[:, 0]).writer(x)
        scale = (centred * (output - bias)).sum(-1) / centred.square().sum(-1).clamp(min=1e-30)
        norm = cls(gain, bias, centres, scale, at)
        if not close(norm.apply(x), output):
            raise AttributionError(
                f"Features can't be attributed in {model.name}: {at} is not a gain times its input over one number, as "
                "a norm is."
            )
        return norm

    @classmethod
    def factor(cls, like: Tensor, factor: float = 1.0) -> FrozenNorm:
        """One number times its input, for a stream like `[pos, d_model]`."""
        return cls(torch.full_like(like[0], factor), torch.zeros_like(like[0]), False, torch.ones_like(like[:, 0]))

    def apply(self, x: Tensor) -> Tensor:
        """The norm's output for a stream `[..., pos, d_model]`, with the prompt's scale."""
        return self.scale[:, None] * self.writer(x) + self.bias

    def writer(self, vectors: Tensor) -> Tensor:
        """What the norm makes of vectors `[..., d_model]`, without scale and bias."""
        return (vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors) * self.gain

    def reader(self, vectors: Tensor) -> Tensor:
        """The vectors `[..., d_model]` that read the stream as `vectors` read the norm's output, without the scale."""
        vectors = vectors * self.gain
        return vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient at the input, from a gradient at the output `[n, pos, d_model]` of the first positions."""
        return self.reader(gradient) * self.scale[: gradient.shape[1], None]
