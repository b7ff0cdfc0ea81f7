"""The neurons of a layer: whether a hook point carries them, and what they add to the residual stream.

Names of TransformerLens don't decide it. The shapes of the plain modules do, and a nudge of the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.hookpoints import HookPoint
from workbench.model.modules import is_conv1d, sharing_copy
from workbench.model.weights import ModelError

NUDGE = 0.25
"""Size of a nudge, as a share of the size of the tensor that it moves."""
NEARLY = 0.999
"""Least cosine of a nudge with what it moves in the stream; a norm or a nonlinearity between stays well below."""
Change = Callable[[Tensor], Tensor]
"""From the tensor at a place in a pass to the tensor that replaces it there."""
_LAYER = re.compile(r"[^\d]*\.\d+(?=\.|$)")
"""The path of a layer: it ends with the first number in a path."""


def linear_shape(module: nn.Module | None) -> tuple[int, int] | None:
    """Inputs and outputs of a module that is one linear map; None for any other module."""
    if module is not None and is_conv1d(module):
        weight: Any = module.weight
        return tuple(weight.shape)  # type: ignore[return-value]
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else None


def check_neurons(module: nn.Module, layer: int, point: HookPoint | None, site: str, d_model: int) -> None:
    """Refuse a hook point that does not carry the neurons of a layer.

    `post` is the input of one linear map from the neurons to the stream; the other sites are the output of one from the
    stream, or part of it, where a plain module carries them.

    Args:
        module: the plain model.
        layer: the layer.
        point: the hook point; None if the layer has none.
        site: `gate`, `up` or `post`.
        d_model: width of the residual stream.

    Raises:
        ModelError: the layer has no neurons of its own at this site.
    """
    if point is not None:
        own = module.get_submodule(point.module) if point.module else None
        sizes = linear_shape(own)
        if site == "post" and point.side == "in" and sizes == (point.width, d_model):
            return
        if site != "post" and (own is None or (point.side == "out" and sizes == (d_model, point.width))):
            return
    sees = "is a mixture of experts" if _has_experts(module, layer) else "is not two linear maps around its neurons"
    raise ModelError(f"The MLP of layer {layer} {sees}, so it has no neurons of its own at {site!r}.")


def _has_experts(module: nn.Module, layer: int) -> bool:
    """Whether a layer has matrices stacked in one tensor, or a list of alike modules with matrices."""
    pattern = re.compile(rf"[^\d]*\.{layer}(\.|$)")
    for path, inner in module.named_modules():
        if not pattern.match(path):
            continue
        if any(parameter.ndim == 3 for parameter in inner.parameters(recurse=False)):
            return True
        if isinstance(inner, nn.ModuleList) and any(linear_shape(one) for one in inner.modules()):
            return True
    return False


class LayerProbe:
    """The layers of a model, each called alone with what it sees on a short text; the model itself stays untouched.

    Args:
        module: the plain model.
    """

    def __init__(self, module: Any):
        self.module: Any = sharing_copy(module)  # hooks of the probe must not act on passes of other threads
        sizes = module.config.get_text_config()
        self.calls: dict[str, tuple[tuple, dict[str, Any]]] = {}
        handles = [
            layer.register_forward_pre_hook(self._keep(path), with_kwargs=True)
            for path, layer in self.module.named_modules()
            if _LAYER.fullmatch(path)
        ]
        with torch.no_grad():
            self.module(input_ids=torch.arange(5)[None] % sizes.vocab_size, use_cache=False)
        for handle in handles:
            handle.remove()

    def norm_behind(self, point: HookPoint) -> str | None:
        """The path of the norm that alone lies between a hook point and the residual stream; None if there is none.

        With the output of that norm held, no nudge at the hook point reaches the layer's output.

        Args:
            point: a hook point in a layer, as wide as the stream.
        """
        if point.module is None or (block := _LAYER.match(point.module)) is None or block[0] not in self.calls:
            return None
        own, sizes = point.module[len(block[0]) + 1 :], [(point.width,)]
        norms = [
            path
            for path, inner in self.module.get_submodule(block[0]).named_modules()
            if [tuple(one.shape) for one in inner.parameters()] in (sizes, sizes * 2)
            and linear_shape(inner) is None
            and (path, "out") != (own, point.side)
        ]
        seen: dict[str, Tensor] = {}
        base = self._run(block[0], {(path, "out"): _keep(seen, path) for path in norms})
        moved = (self._run(block[0], {(own, point.side): _nudge}) - base).abs().max()
        for path in norms:
            held = {(own, point.side): _nudge, (path, "out"): _hold(seen[path])}
            if (self._run(block[0], held) - base).abs().max() < 1e-3 * moved:
                return f"{block[0]}.{path}"
        return None

    def check_direct(self, point: HookPoint) -> None:
        """Refuse a hook point whose tensor is not added to the residual stream as it is, but for a factor.

        Args:
            point: the output of an MLP's last matrix.

        Raises:
            ModelError: a nudge at the hook point moves the layer's output in another direction.
        """
        path = point.module or ""
        block = _LAYER.match(path)
        if block is None or block[0] not in self.calls:
            raise ModelError(f"{path} lies in no layer of the model, so what it writes is not known.")
        seen: dict[str, Tensor] = {}
        at = (path[len(block[0]) + 1 :], point.side)
        base = self._run(block[0], {at: _keep(seen, "value")})
        moved = (self._run(block[0], {at: _nudge}) - base).flatten().double()
        pushed = (_nudge(seen["value"]) - seen["value"]).flatten().double()
        if not float(torch.nn.functional.cosine_similarity(moved, pushed, dim=0)) > NEARLY:
            raise ModelError(f"What {path} writes changes on its way into the residual stream, so it has no direction.")

    def _keep(self, path: str) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.calls.setdefault(path, (args, kwargs))

        return keep

    def _run(self, block: str, changes: dict[tuple[str, str], Change]) -> Tensor:
        """A layer's output where the tensors at some places, a path in it and a side, are replaced."""
        layer = self.module.get_submodule(block)
        args, kwargs = self.calls[block]
        handles = []
        for (path, side), change in changes.items():
            inner = layer.get_submodule(path)
            if side == "in":
                handles.append(inner.register_forward_pre_hook(_before(change), with_kwargs=True))
            else:
                handles.append(inner.register_forward_hook(_after(change)))
        try:
            with torch.no_grad():
                out = layer(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return out[0] if isinstance(out, tuple) else out


def _keep(seen: dict[str, Tensor], path: str) -> Change:
    def keep(value: Tensor) -> Tensor:
        seen[path] = value
        return value

    return keep


def _hold(value: Tensor) -> Change:
    return lambda _: value


def _nudge(value: Tensor) -> Tensor:
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    return value + NUDGE * value.abs().mean() * noise


def _before(change: Change) -> Callable[[nn.Module, tuple, dict[str, Any]], Any]:
    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    return before


def _after(change: Change) -> Callable[[nn.Module, tuple, Any], Any]:
    return lambda _, __, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
