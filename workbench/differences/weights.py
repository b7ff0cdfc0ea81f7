"""How weights differ: by matrix with the directions that carry the change, by head and by neuron."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.precision import in_float64
from workbench.differences.pairs import Pair
from workbench.differences.results import TensorDifference, UnitDifference, WeightDifferences
from workbench.model.language_model import LanguageModel
from workbench.model.modules import is_conv1d
from workbench.model.weights import ModelError

SHARE = 0.9
"""Of the squared norm of a change, for its directions."""


def compare_weights(
    pair: Pair, top: int, tell: Callable[[float, str], None], stops: Callable[[], bool]
) -> WeightDifferences:
    """The tensors that differ, and the heads and neurons that changed most, at most `top` of each."""
    tensors = []
    for number, (name, (one, other)) in enumerate(pair.changed.items()):
        if stops():
            break
        tensors.append(_tensor(name, one.detach(), other.detach().to(one.device)))
        tell((number + 1) / (len(pair.changed) + 1), f"weights: {number + 1} of {len(pair.changed)}")
    tensors.sort(key=lambda one: -one.relative)
    layers = range(pair.a.network.n_layers)
    heads = [one for layer in layers for one in _heads(pair, layer)]
    neurons = [one for layer in layers for one in _neurons(pair, layer, top)]
    heads.sort(key=lambda one: -one.relative)
    neurons.sort(key=lambda one: -one.relative)
    return WeightDifferences(tensors, pair.equal, heads[:top], neurons[:top])


def _tensor(name: str, one: Tensor, other: Tensor) -> TensorDifference:
    change = other.float() - one.float()
    size = float(one.float().norm())
    relative = float(change.norm()) / size if size else float("inf")
    if change.ndim < 2:
        return TensorDifference(name, relative)
    matrix = change.flatten(0, -2)  # experts one below the other
    values = singular_values(matrix)
    energy = values.square().cumsum(0) / values.square().sum()
    return TensorDifference(
        name,
        relative,
        rank=_rank(values, matrix, max((one, other), key=_rounding)),
        directions=int((energy < SHARE).sum()) + 1,
        full=min(matrix.shape),
    )


def singular_values(matrix: Tensor) -> Tensor:
    """The singular values of a matrix in float64, the largest first, from its smaller Gram matrix."""
    wide = in_float64(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp(min=0).sqrt()


def _rounding(weight: Tensor) -> float:
    """The relative rounding of a tensor's type; 0 for whole numbers."""
    return torch.finfo(weight.dtype).eps if weight.is_floating_point() else 0.0


def _rank(values: Tensor, change: Tensor, weight: Tensor) -> int:
    """The number of singular values above what rounding the weight leaves."""
    rms = float(weight.float().square().mean().sqrt())
    sides = sum(side**0.5 for side in change.shape)
    rounding = _rounding(weight) * rms * sides
    return int((values > max(rounding, 1e-6 * float(values[0]))).sum())


def _relative(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Norm of the change over the norm, for rows of several pairs of matrices `[units, width]`: `[units]`."""
    change = sum((other - one).square().sum(1) for one, other in parts)
    size = sum(one.square().sum(1) for one, _ in parts)
    assert isinstance(change, Tensor)
    assert isinstance(size, Tensor)
    return (change / size).nan_to_num(nan=0.0, posinf=torch.inf).sqrt()  # of nothing that stays nothing: 0


def _heads(pair: Pair, layer: int) -> list[UnitDifference]:
    """The heads of a layer whose queries or outputs changed, where modules hold them head by head."""
    both: list[tuple[Tensor, Tensor]] = []
    for point in ("attn.hook_z", "attn.hook_q"):
        rows = [_head_rows(model, f"blocks.{layer}.{point}") for model in (pair.a, pair.b)]
        if rows[0] is not None and rows[1] is not None and rows[0].shape == rows[1].shape:
            both.append((rows[0], rows[1].to(rows[0].device)))
    if not both:
        return []
    relative = _relative(both).tolist()
    return [UnitDifference(f"{layer}.{head}", layer, one) for head, one in enumerate(relative) if one > 0]


def _head_rows(model: LanguageModel, name: str) -> Tensor | None:
    """The weights that make or read a tensor of heads, a row for each head; None where no matrix holds them alone."""
    point = model.hook_points.get(name)
    if point is None or point.module is None or len(point.shape) != 2 or point.shape[0] != model.network.n_heads:
        return None
    module = model.network.module.get_submodule(point.module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    by_output = weight.detach().float().T if is_conv1d(module) else weight.detach().float()
    rows = by_output if point.side == "out" else by_output.T  # a row for each coordinate of the heads
    return rows.reshape(point.shape[0], -1) if rows.shape[0] == point.width else None


def _neurons(pair: Pair, layer: int, top: int) -> list[UnitDifference]:
    """The neurons of a layer that changed most."""
    sites = [one for one in ("gate", "up") if one in pair.a.network.neuron_sites]
    both = []
    try:
        for weights in (*sites, "down"):
            one, other = (model.network.neuron_weights(layer, weights) for model in (pair.a, pair.b))
            if one.shape != other.shape:
                return []
            both.append((one, other.to(one.device)))
    except (WorkbenchError, ModelError):
        return []
    relative = _relative(both)
    values, places = relative.topk(min(top, len(relative)))
    names = [f"neurons.{layer}.{sites[-1]}:{place}" for place in places.tolist()]
    return [UnitDifference(n, layer, v) for n, v in zip(names, values.tolist(), strict=True) if v > 0]
