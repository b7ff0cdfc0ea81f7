"""Folding of affine changes of activations into the matrices beside them, in float64 and rounded once to their type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.precision import float64_device
from workbench.interventions.affine import Add, AffineChange
from workbench.model.modules import is_conv1d

AT_ONCE = 1 << 24
"""Numbers of a matrix that are in float64 at once: 128 MiB."""


@dataclass(frozen=True)
class Place:
    """The matrix that takes over the changes at a hook point."""

    module: str
    """Path of the plain module with the matrix."""
    side: str
    """`in`: in front of the matrix; `out`: behind it."""
    stage: int = 0
    """Which of the hook points behind one matrix comes first: 0 its own output, 1 the sublayer's, 2 the stream's."""
    scale: float = 1.0
    """The change of the stream for one unit at this place: embeddings may be multiplied on the way."""
    through_norm: bool = False
    """Whether a norm is in between, which can pass on silence and nothing else."""
    hides: tuple[str, ...] = ()
    """Keys of hook points at which the baked model has other values than the intervened one."""


@dataclass(frozen=True)
class Fold:
    """One change with its place."""

    place: Place
    op: AffineChange


def fold(module: nn.Module, folds: Sequence[Fold], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """The weight of a module and its bias with changes folded into them, at each hook point in the order of the list.

    Args:
        module: a `Linear`, GPT-2's `Conv1D` or an `Embedding`.
        folds: changes whose place is this module.
        dtype: of what is returned; None for the module's own.

    Returns:
        The weight in the module's own shape, and the bias, None where it is zero and the module has none. That of an
        embedding is in its rows.
    """
    layer: Any = module
    turned = isinstance(module, nn.Embedding) or is_conv1d(module)
    stored = layer.weight.detach()
    kind = dtype or stored.dtype
    new = torch.empty_like(stored, dtype=kind)
    source, target = (stored.T, new.T) if turned else (stored, new)  # [out, in]
    own_bias = getattr(layer, "bias", None)
    old = source.new_zeros(len(source)) if own_bias is None else own_bias.detach()
    home = float64_device(stored.device)
    old = old.to(home)
    bias = old.to(torch.float64, copy=True)
    multiplied = float(getattr(layer, "embed_scale", 1.0)) if isinstance(module, nn.Embedding) else 1.0
    for rows, columns in _parts(source, {one.place.side for one in folds}):
        weight = source[rows, columns].to(home).to(torch.float64, copy=True)
        if multiplied != 1:
            weight *= multiplied
        bias[rows] = old[rows]
        _apply(folds, weight, bias[rows])
        if isinstance(module, nn.Embedding):
            weight += bias[rows, None]
            weight /= multiplied
        target[rows, columns] = weight.to(kind)
    if isinstance(module, nn.Embedding):
        return new, None
    keeps = own_bias is not None or bool(bias.any())
    return new, bias.to(kind).to(stored.device) if keeps else None


def _parts(weight: Tensor, sides: set[str]) -> list[tuple[slice, slice]]:
    """Rows and columns of a matrix `[out, in]` that changes of these sides can be folded into by themselves.

    A change in front of a matrix acts on each row alone, one behind it on each column.
    """
    rows, columns = weight.shape
    if sides == {"out"}:
        step = max(1, AT_ONCE // rows)
        return [(slice(None), slice(start, start + step)) for start in range(0, columns, step)]
    step = max(1, AT_ONCE // columns) if sides == {"in"} else rows
    return [(slice(start, start + step), slice(None)) for start in range(0, rows, step)]


def _apply(folds: Sequence[Fold], weight: Tensor, bias: Tensor) -> None:
    """Fold changes into a matrix `[out, in]` and a bias `[out]` in float64, in place."""
    for one in reversed([one for one in folds if one.place.side == "in"]):
        one.op.before(weight, bias)
    for one in sorted((one for one in folds if one.place.side == "out"), key=lambda one: one.place.stage):
        op = Add(one.op.vector / one.place.scale) if isinstance(one.op, Add) else one.op
        op.behind(weight, bias)


def holds_matrix(module: nn.Module | None) -> bool:
    """Whether changes can be folded into a module."""
    plain = isinstance(module, nn.Linear | nn.Embedding) or (module is not None and is_conv1d(module))
    weight = getattr(module, "weight", None)
    return plain and isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
