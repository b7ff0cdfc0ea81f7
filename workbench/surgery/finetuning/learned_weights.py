"""A matrix while a model heals: with a low-rank addition, with zeros that stay, with a mask that comes slowly.

Its linear module runs with it under a gradient of its own: the backward pass computes the adapted matrix again instead
of keeping it, since all matrices together would be as large as the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.modules import is_conv1d


class AdaptedWeight(nn.Module):
    """The adapted matrix of a linear module; the module holds it as `adapted_weight` and runs with it.

    Args:
        module: a linear module; its `forward` is replaced.
        rank: width of the addition, which is zero at first; None or 0 for none.
        zeros: weights that stay zero, bool in the shape of the weight; None for none.
        chance: draws the initial addition.

    Attributes:
        kept: unchanged weights, bool; the others are multiplied by `share`. None where all are unchanged.
        share: see `kept`.
    """

    def __init__(self, module: Any, rank: int | None, zeros: Tensor | None, chance: torch.Generator):
        super().__init__()
        rows, columns = module.weight.shape
        self.up = self.down = None
        if rank:
            drawn = torch.randn(rank, columns, generator=chance) / columns**0.5
            self.up = nn.Parameter(torch.zeros(rows, rank, device=module.weight.device))
            self.down = nn.Parameter(drawn.to(module.weight.device))
        self.zeros, self.share = zeros, 1.0
        self.kept: Tensor | None = None
        self.turned = is_conv1d(module)
        module.adapted_weight = self
        module.forward = lambda x: _Linear.apply(self, x, module.weight, module.bias, self.up, self.down)

    def adapted(self, weight: Tensor) -> Tensor:
        """The adapted matrix, in memory of its own and in float32."""
        up, down, kind = self.up, self.down, torch.promote_types(weight.dtype, torch.float32)
        if up is None or down is None:
            return self.mask_(weight.to(kind, copy=True))
        return self.mask_(torch.addmm(weight.to(kind), up, down))

    def mask_(self, x: Tensor) -> Tensor:
        """Apply zeros and mask to a tensor in the shape of the weight, in place."""
        if self.zeros is not None:
            x.masked_fill_(self.zeros, 0.0)
        if self.kept is not None:
            x.mul_(self.kept.to(x.dtype).mul_(1 - self.share).add_(self.share))
        return x

    def leave(self, module: Any) -> None:
        """Make the adapted matrix the module's weight, rounded to the weight's type, and restore its `forward`."""
        del module.adapted_weight, module.forward
        weight = module.weight.detach()
        module.weight = nn.Parameter(self.adapted(weight).detach().to(weight.dtype), requires_grad=False)


class _Linear(torch.autograd.Function):
    """x times the adapted matrix, plus the bias."""

    @staticmethod
    def forward(ctx: Any, adapted_weight: AdaptedWeight, *tensors: Tensor | None) -> Tensor:
        x, weight, bias, _, _ = tensors
        ctx.save_for_backward(*tensors)
        ctx.adapted_weight = adapted_weight
        assert x is not None
        assert weight is not None
        adapted = adapted_weight.adapted(weight)
        bias = bias if bias is None else bias.to(adapted.dtype)
        return nn.functional.linear(x, adapted.T if adapted_weight.turned else adapted, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _, up, down = ctx.saved_tensors
        adapted_weight: AdaptedWeight = ctx.adapted_weight
        _, for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        g = gradients[0]
        adapted = adapted_weight.adapted(weight)
        to_x = g @ (adapted.T if adapted_weight.turned else adapted) if for_x else None
        rows, columns = g.flatten(0, -2), x.flatten(0, -2)
        to_bias = rows.sum(0) if for_bias else None
        if not for_weight and up is None:
            return None, to_x, None, to_bias, None, None
        to_weight = adapted_weight.mask_(columns.T @ rows if adapted_weight.turned else rows.T @ columns)
        if up is None:
            return None, to_x, to_weight, to_bias, None, None
        return None, to_x, to_weight if for_weight else None, to_bias, to_weight @ down.T, up.T @ to_weight
