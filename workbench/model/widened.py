"""Models in 16 bits that compute in float32: weights stay as they are, and each operation widens what it reads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.model.language_model import LanguageModel

NARROW = (torch.bfloat16, torch.float16)
_active = threading.local()


def is_exact(model: LanguageModel) -> bool:
    """Whether a model computes in float32 or better, so that equal computations differ by little."""
    return model.dtype not in NARROW


def in_float32(model: LanguageModel) -> LanguageModel:
    """The model itself where it is in float32; otherwise a twin that computes the same in float32.

    The twin shares all tensors with the model: a weight is float32 while an operation reads it, and no longer. A
    backward pass keeps those that it needs, up to twice the weights of a 16-bit model.

    Args:
        model: left as it is; edits in force around a call act on the twin too.
    """
    if is_exact(model):
        return model
    twin = LanguageModel(model.network.module, model.tokenizer, model.name, model.weights_hash)
    widen(twin.network.module)
    twin.about, twin.splices = model.about, model.splices
    return twin


def narrowed(twin: LanguageModel, model: LanguageModel) -> LanguageModel:
    """A model of the types of `model` with the weights of its twin, which were learned in float32, each rounded once.

    It computes in its own type, and shares the tensors that are equal with `model`.
    """
    result = LanguageModel(model.network.module, twin.tokenizer, twin.name, twin.weights_hash)
    learned = dict(twin.network.module.named_parameters())
    for name, own in result.network.module.named_parameters():
        rounded = learned[name].detach().to(own.dtype)
        if not torch.equal(rounded, own):
            own.data = rounded
    return result


def widen(module: nn.Module, exact: Mapping[str, Callable[[], Mapping[str, Tensor]]] | None = None) -> None:
    """Make a tree of modules, and copies of it, compute in float32, in place; parameters keep their type and memory.

    Args:
        module: the root of the tree. Its parts compute in float32 when they are called by themselves, too.
        exact: by path of a part, a function whose tensors stand for the part's parameters while it runs.
    """
    for path, inner in module.named_modules():
        if not getattr(inner, "computes_in_float32", False):
            inner.__class__ = _wide(type(inner))
        if exact and path in exact:
            inner.exact_parameters = exact[path]  # type: ignore[assignment]


class _InFloat32(TorchFunctionMode):
    """Operations with every 16-bit argument in float32, and no cast to 16 bits."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # an attribute, such as the type that a tensor has
            return func(*args)
        return func(*_widened(args), **_widened(kwargs or {}))


def _widened(value: Any) -> Any:
    """Arguments with float32 for every 16-bit tensor and type in them."""
    if isinstance(value, Tensor):
        with torch._C.DisableTorchFunction():
            return value.float() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    if type(value) in (tuple, list):
        return type(value)(map(_widened, value))
    return {key: _widened(one) for key, one in value.items()} if type(value) is dict else value


@functools.cache
def _wide(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a module's class that computes in float32."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own, source = self._parameters, self.__dict__.get("exact_parameters")
        if source is not None:
            self._parameters = {**own, **source()}
        outermost = not getattr(_active, "on", False)
        _active.on = True
        try:
            if not outermost:
                return kind.forward(self, *args, **kwargs)
            with _InFloat32():
                return kind.forward(self, *args, **kwargs)
        finally:
            self._parameters = own
            _active.on = not outermost

    body = {"forward": forward, "computes_in_float32": True, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)
