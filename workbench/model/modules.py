"""What the plain Hugging Face modules of a model are: their kinds, and copies that share weights."""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_conv1d(module: nn.Module) -> bool:
    """Whether a linear map stores its weight as `[in, out]`, as GPT-2's `Conv1D` does; `nn.Linear` stores
    `[out, in]`."""
    return isinstance(module, Conv1D)


def through(module: nn.Module, x: Tensor, *others: Tensor) -> Any:
    """What a module makes of tensors, on the first one's device, wherever the module is."""
    there = next((one.device for one in module.parameters()), x.device)
    out = module(*(one.to(there) for one in (x, *others)))
    return (out[0] if isinstance(out, tuple) else out).to(x.device)


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy of a module tree without hooks, in evaluation mode, that shares the weights; they require no gradient."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    twin = copy.deepcopy(module, memo).eval()
    for inner in twin.modules():
        inner._forward_hooks.clear()
        inner._forward_pre_hooks.clear()
        forward = vars(inner).get("forward")
        if isinstance(forward, FunctionType):
            vars(inner)["forward"] = _rebound(forward, memo)
    return twin


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """A function of a module, of the module's copy; anything else as it is.

    Where transformers shards a model it puts functions in place of `forward` that refer to their module. A copy of such
    a function is the function itself.
    """
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if not isinstance(value, FunctionType) or value.__closure__ is None:
        return value
    cells = tuple(CellType(_rebound(cell.cell_contents, memo)) for cell in value.__closure__)
    twin = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    twin.__kwdefaults__ = value.__kwdefaults__
    return twin
