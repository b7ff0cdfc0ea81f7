"""The attention of one block on a prompt as a linear map: patterns are constants.

    written[dst] = sum over heads A'[dst, src] (read[src] W_V + b_V) W_O + b_O

Where a model cuts values off at a limit, those that are cut off on the prompt are constants too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.attribution.norms import close
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class FrozenHeads:
    """The heads of one block, with the prompt's patterns."""

    pattern: Tensor
    """`[heads, dst, src]`."""
    value: Tensor
    """`[kv_heads, d_model, d_head]`."""
    value_bias: Tensor
    """`[kv_heads, d_head]`."""
    out: Tensor
    """`[heads, d_head, d_model]`."""
    out_bias: Tensor
    """`[d_model]`."""
    cut: Tensor | None = None
    """`[kv_heads, src, d_head]`: the values that are cut off on the prompt, NaN for all others; None if none is."""

    @classmethod
    def of(
        cls, model: LanguageModel, layer: int, pattern: Tensor, read: Tensor, written: list[Tensor]
    ) -> tuple[FrozenHeads, Tensor] | None:
        """The heads of a layer, and which of the tensors they write; None if they are no such map.

        Args:
            model: the model.
            layer: the layer.
            pattern: `[heads, dst, src]`.
            read: what they read, `[pos, d_model]`.
            written: tensors `[pos, d_model]` that they may write.

        Raises:
            ModelError: weights that are not stored per head.
        """
        heads = cls(pattern, *model.network.attention_weights(layer))
        values = heads.values(read)
        computed = heads.write(values)
        for one in written:
            if close(computed, one):
                return heads, one
        for one in written:
            limit = _limit(heads, values, one)
            held = values.clamp(-limit, limit)
            if close(heads.write(held), one):
                return replace(heads, cut=held.masked_fill(held == values, torch.nan)), one
        return None

    def values(self, read: Tensor) -> Tensor:
        """Values `[..., kv_heads, src, d_head]` of what is read, `[..., src, d_model]`, before any is cut off."""
        return torch.einsum("...sd,kdh->...ksh", read, self.value) + self.value_bias[:, None]

    def write(self, values: Tensor) -> Tensor:
        """What the heads write, `[dst, d_model]`, for values."""
        return torch.einsum("thd,hdm->tm", self._mixed(values), self.out) + self.out_bias

    def mix(self, read: Tensor) -> Tensor:
        """What each head mixes of the values, `[..., dst, heads, d_head]`; those cut off on the prompt are as there."""
        values = self.values(read)
        return self._mixed(values if self.cut is None else torch.where(self.cut.isnan(), values, self.cut))

    def _mixed(self, values: Tensor) -> Tensor:
        values = values.repeat_interleave(len(self.out) // len(self.value), -3)  # [..., heads, src, d_head]
        return (self.pattern @ values).transpose(-3, -2)

    def back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at what is read, from one at what is written `[n, pos, d_model]`, and biases' share `[n]`."""
        n, length, _ = gradient.shape
        heads, d_head = self.out.shape[:2]
        bias = gradient.sum(1) @ self.out_bias
        z = (gradient @ self.out.flatten(0, 1).T).view(n, length, heads, d_head)
        z = z.permute(2, 1, 0, 3).reshape(heads, length, n * d_head)  # [heads, dst, n * d_head]
        value = self.pattern[:, :length, :length].transpose(1, 2) @ z  # [heads, src, n * d_head]
        value = value.view(len(self.value), -1, length, n, d_head).sum(1)  # [kv_heads, src, n, d_head]
        if self.cut is not None:
            cut = self.cut[:, :length, None]
            bias = bias + (value * cut.nan_to_num(0.0)).sum((0, 1, 3))
            value = value * cut.isnan()
        bias = bias + (value.sum(1) * self.value_bias[:, None]).sum((0, 2))
        value = value.permute(2, 1, 0, 3).reshape(n, length, -1)
        return value @ self.value.transpose(1, 2).flatten(0, 1), bias


def _limit(heads: FrozenHeads, values: Tensor, written: Tensor) -> float:
    """The limit at which values are cut off so that the heads write nearest to a tensor."""

    def miss(limit: float) -> float:
        return float((heads.write(values.clamp(-limit, limit)) - written).norm())

    high = float(values.abs().max())
    width = high / 64
    best = min((width * step for step in range(1, 65)), key=miss)
    low, high = best - width, best + width
    for _ in range(60):  # each takes a third away
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, two) if miss(one) < miss(two) else (one, high)
    return (low + high) / 2
