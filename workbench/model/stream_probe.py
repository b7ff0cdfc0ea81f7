"""Layers of a model, each called alone on a random stream, with some of its tensors held or replaced."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.mlp import linear_shape
from workbench.model.modules import sharing_copy
from workbench.model.sharded import in_one_piece

Place = tuple[str, str]
"""Path of a module inside a region, and a side of it: `in` or `out`."""
_LAYER = re.compile(r"[^\d]*\.\d+(?=\.|$)")
"""The path of a layer: it ends with the first number in a path."""
LENGTH = 5
"""Tokens of a probe."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a model at whose end the residual stream is read: one layer, or all that is in front of the first."""

    layer: str
    """Path of the layer; empty for what is in front of the first."""
    module: nn.Module
    matrices: tuple[str, ...]
    """Paths inside the region of the modules that hold matrices."""
    norms: tuple[str, ...]
    """Paths inside the region of the modules that may be norms of the stream."""

    def inside(self, path: str) -> str:
        """The path inside the region of a module at a path in the model."""
        return path[len(self.layer) + 1 :] if self.layer else path


class StreamProbe:
    """Passes through single layers of a model, which itself stays untouched.

    What a layer sees is random, so that values which a few coordinates of a real stream have (massive activations)
    hide no nudge. Layers in 16 bits are probed in float32.

    Args:
        module: the plain model.
        d_model: width of the residual stream.
    """

    def __init__(self, module: Any, d_model: int):
        self.module: Any = sharing_copy(module)  # hooks of the probe must not act on passes of other threads
        self.d_model = d_model
        self.tokens = torch.arange(LENGTH)[None] % module.config.get_text_config().vocab_size
        self._calls: dict[str, tuple[tuple, dict[str, Any]]] = {}
        paths = [path for path, _ in self.module.named_modules() if _LAYER.fullmatch(path)]

        def keep(path: str) -> Any:
            return lambda _, args, kwargs: self._calls.__setitem__(path, (args, kwargs))

        hooks = [self.module.get_submodule(p).register_forward_pre_hook(keep(p), with_kwargs=True) for p in paths]
        with torch.no_grad():
            self.module(input_ids=self.tokens.to(self.module.device), use_cache=False)
        for hook in hooks:
            hook.remove()
        self.first = next(path for path in paths if path in self._calls)

    def region(self, path: str) -> Region:
        """The region that a module of the model lies in, a copy in float32 where the model's type has 16 bits.

        A layer that is sharded over processes is a whole copy of it, in each of them.
        """
        match = _LAYER.match(path)
        layer = match[0] if match and match[0] in self._calls else ""
        if layer:
            module = in_one_piece(self.module.get_submodule(layer))
            if next(module.parameters()).dtype != torch.float32:
                module = copy.deepcopy(module).float()
            inner = [name for name, _ in module.named_modules() if name]
        else:
            module = self.module
            inner = [name for name, _ in module.named_modules() if name and not _LAYER.match(name)]
        matrices, norms = [], []
        for name in inner:
            one = module.get_submodule(name)
            shapes = [tuple(parameter.shape) for parameter in one.parameters()]
            if any(parameter.ndim >= 2 for parameter in one.parameters(recurse=False)):
                matrices.append(name)
            elif shapes in ([(self.d_model,)], [(self.d_model,)] * 2) and linear_shape(one) is None:
                norms.append(name)
        return Region(layer, module, tuple(matrices), tuple(norms))

    def hold_matrices(self, region: Region, but: str) -> dict[str, Any]:
        """The outputs of all modules with matrices but one: with them held, a nudge arrives by no detour."""
        outputs: dict[str, Any] = {}

        def keep(path: str) -> Any:
            return lambda _, __, out: outputs.__setitem__(path, _cloned(out))

        paths = [path for path in region.matrices if path != but]
        hooks = [region.module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
        try:
            self._stream(region)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    def run(
        self,
        region: Region,
        held: Mapping[str, Any],
        changes: Mapping[Place, Tensor] | None = None,
        *,
        keep: Sequence[Place] = (),
        into: dict[Place, Tensor] | None = None,
    ) -> Tensor:
        """The stream behind a region, `[1, pos, d_model]`.

        Args:
            region: the region.
            held: whole outputs of modules, by path.
            changes: tensors that replace those at some places.
            keep: places whose tensors are kept.
            into: where they are kept.
        """
        hooks = []
        for path, out in held.items():
            hooks.append(region.module.get_submodule(path).register_forward_hook(lambda *_, out=out: _cloned(out)))
        for (path, side), value in (changes or {}).items():
            inner = region.module.get_submodule(path)
            if side == "in":
                hooks.append(inner.register_forward_pre_hook(_replace_input(value), with_kwargs=True))
            else:
                hooks.append(inner.register_forward_hook(_replace_output(value)))
        for place in keep:
            inner = region.module.get_submodule(place[0])
            if place[1] == "in":
                hooks.append(inner.register_forward_pre_hook(_keep_input(into, place), with_kwargs=True))
            else:
                hooks.append(inner.register_forward_hook(_keep_output(into, place)))
        try:
            return self._stream(region)
        finally:
            for hook in hooks:
                hook.remove()

    def token_parts(self, ids: Tensor) -> Tensor:
        """What tokens `[n]` bring into the first layer, `[n, d_model]`: without what no token decides.

        The stream in front of the first layer, minus the same where the embedding is zero, so that position embeddings
        are left out.
        """
        tokens = ids[:, None]
        entered = self._entering(tokens)
        table = self.module.get_input_embeddings()
        hook = table.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        try:
            alone = self._entering(tokens[:1])
        finally:
            hook.remove()
        return (entered - alone)[:, 0]

    def _stream(self, region: Region) -> Tensor:
        if not region.layer:
            return self._entering(self.tokens)
        args, kwargs = self._calls[region.layer]
        chance = torch.Generator().manual_seed(0)
        old = args[0] if args else kwargs["hidden_states"]
        own = next(region.module.parameters())
        stream = torch.randn(old.shape, generator=chance).to(own)
        args, kwargs = (_as_type(x, old.dtype, own.dtype) for x in (args, kwargs))
        if args:
            args = (stream, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": stream}
        with torch.no_grad():
            out = region.module(*args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def _entering(self, tokens: Tensor) -> Tensor:
        """What enters the first layer, `[batch, pos, d_model]`."""
        entered: list[Tensor] = []

        def stop(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _Entered

        hook = self.module.get_submodule(self.first).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self.module(input_ids=tokens.to(self.module.device), use_cache=False)
        except _Entered:
            pass
        finally:
            hook.remove()
        return entered[0].float()


class _Entered(Exception):
    """The first layer is reached."""


def nudge(value: Tensor) -> Tensor:
    """A random change of a tensor, as large as its values."""
    size = value.abs().mean()
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value)
    return noise * (size if float(size) > 0 else 1.0)


def _cloned(out: Any) -> Any:
    """A copy of a module's output: some models add to it in place."""
    if isinstance(out, Tensor):
        return out.clone()
    return tuple(_cloned(one) for one in out) if isinstance(out, tuple) else out


def _as_type(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Arguments of a layer with the model's own type changed to another."""
    if isinstance(value, Tensor):
        return value.to(new) if value.dtype == old else value
    if isinstance(value, dict):
        return {key: _as_type(one, old, new) for key, one in value.items()}
    return tuple(_as_type(one, old, new) for one in value) if isinstance(value, tuple) else value


def _keep_input(into: Any, place: Place) -> Any:
    def keep(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        into[place] = (args[0] if args else kwargs["hidden_states"]).clone()

    return keep


def _keep_output(into: Any, place: Place) -> Any:
    def keep(_: nn.Module, __: tuple, out: Any) -> None:
        into[place] = (out[0] if isinstance(out, tuple) else out).clone()

    return keep


def _replace_input(value: Tensor) -> Any:
    def replace(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (value.clone(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": value.clone()}

    return replace


def _replace_output(value: Tensor) -> Any:
    return lambda _, __, out: (value.clone(), *out[1:]) if isinstance(out, tuple) else value.clone()
