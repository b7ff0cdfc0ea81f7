"""Forward hooks on plain modules: they apply the edits of the current run, and do nothing where there is no run.

A hook stays in place once its hook point is used. It reads the run from the context variable of `edits.py`, so that no
edit is part of the shared model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.model.edits import Run, current_run
from workbench.model.hookpoints import HookPoint
from workbench.model.sharded import Pieces


def attach(module: nn.Module, name: str, point: HookPoint, pieces: Pieces | None = None) -> RemovableHandle:
    """Hook the plain module that carries a hook point; the hook applies the edits that run under `name`.

    Args:
        module: the plain module.
        name: the key of the hook point.
        point: the hook point.
        pieces: how processes share the tensor of a sharded model; edits get the whole one.
    """
    apply = functools.partial(_apply if pieces is None or not pieces.widths else _apply_to_pieces, name, point.shape)
    if pieces is not None and pieces.widths:
        apply = functools.partial(apply, pieces)
    if point.side == "in":
        return module.register_forward_pre_hook(_hook_in(name, apply), with_kwargs=True)
    return module.register_forward_hook(_hook_out(name, apply))


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor among a module's arguments that a hook point at its input shows; None if there is none."""
    value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, Tensor) else None


def read_in_one_piece(head: nn.Module) -> None:
    """Give an LM head an input without gaps.

    The last positions of a batch are cut out of a longer tensor. Where neither side takes gradients, torch multiplies
    such a cut by copying the whole weight.
    """
    head.register_forward_pre_hook(_without_gaps)


def _without_gaps(head: nn.Module, args: tuple) -> tuple | None:
    value = args[0] if args else None
    if isinstance(value, Tensor) and value.ndim == 3 and value.stride(0) != value.shape[1] * value.stride(1):
        return (value.clone(memory_format=torch.contiguous_format), *args[1:])
    return None


def _apply(name: str, shape: tuple[int, ...], run: Run, value: Tensor) -> Tensor:
    """Edit a tensor in the shape `[batch, pos, *shape]` of the hook point; returns it in the module's own shape."""
    if value.shape[2:] == shape:
        return run.apply(name, value)
    # OPT's MLPs flatten batch and position, and DeepSeek's keys have an axis between them
    shaped = value.view(*run.positions.shape, *shape)
    edited = run.apply(name, shaped)
    return value if edited is shaped else edited.reshape(value.shape)


def _apply_to_pieces(name: str, shape: tuple[int, ...], pieces: Pieces, run: Run, value: Tensor) -> Tensor:
    """As `_apply`, of the whole tensor of which this process has a part; returns this process's part."""
    values = pieces.whole(value, run.positions.shape)
    edited = _apply(name, shape, run, values)
    return value if edited is values else pieces.own(edited, value)


def _hook_out(name: str, apply: Callable[[Run, Tensor], Tensor]) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        run = current_run()
        if run is None or name not in run.at:
            return None
        if isinstance(output, tuple):
            return (apply(run, output[0]), *output[1:])
        return apply(run, output)

    return hook


def _hook_in(name: str, apply: Callable[[Run, Tensor], Tensor]) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        run = current_run()
        value = input_of(args, kwargs)
        if run is None or name not in run.at or value is None:
            return None
        edited = apply(run, value)
        if edited is value:
            return None
        if args:
            return (edited, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edited}

    return hook
