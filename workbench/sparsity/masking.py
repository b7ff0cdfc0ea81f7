"""Running a model with some of its neurons left out.

A neuron's contribution to a token is `a_i * w_down_i`, and its magnitude `|a_i| * ||w_down_i||` (Luo et al., "Sparsing
Law", 2024, arXiv 2411.02335). What is left out is set to zero at `mlp.hook_post`, the input of the down projection, so
that every activation function, with or without a gate, is treated alike; a bias of the down projection belongs to no
neuron and stays.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Number, as_number, checked
from workbench.core.errors import WorkbenchError
from workbench.core.text import counted
from workbench.core.type_words import shown
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan

LEAST = 1e-30
"""Contributions below this count as none, whatever the threshold."""

Keep = Callable[[Tensor], Tensor]
"""Which neurons take part: from the values of a layer's neurons, `[..., d_mlp]`, to a mask of the same shape."""


@runtime_checkable
class HasThresholds(Protocol):
    """A result with one threshold for each layer: a `Sparsity`."""

    thresholds: list[float]


class SparsityError(WorkbenchError):
    """A measurement of sparsity that can't be taken, or thresholds that don't fit a model."""


def down_weights(model: LanguageModel) -> list[Tensor]:
    """The vector that each neuron writes, layer by layer: `[d_mlp, d_model]` each, in float32."""
    return [model.network.neuron_weights(layer, "down") for layer in range(model.network.n_layers)]


def post_points(model: LanguageModel) -> list[str]:
    """The hook points of the down projections' inputs, where neurons are left out, layer by layer."""
    return [model.network.neuron_hook_point(layer, "post").name for layer in range(model.network.n_layers)]


def above(threshold: float, norms: Tensor) -> Keep:
    """A choice of the neurons whose contributions reach a threshold.

    Args:
        threshold: the least magnitude that is kept; contributions of zero are never kept.
        norms: the length of the vector that each neuron writes, `[d_mlp]`.
    """
    limits = max(threshold, LEAST) / norms  # infinite where a neuron writes nothing
    return lambda values: values.abs() >= limits.to(values.device)


def strongest(share: float, norms: Tensor) -> Keep:
    """A choice of the neurons with the largest contributions, token by token.

    Args:
        share: the share of the neurons that are left out, from 0 to 1; rounded to whole neurons.
        norms: the length of the vector that each neuron writes, `[d_mlp]`.
    """
    out = round(share * len(norms))

    def keep(values: Tensor) -> Tensor:
        sizes = values.abs() * norms.to(values.device)
        if out == 0:
            return sizes >= LEAST
        # NumPy finds a row's k-th value eight times as fast as kthvalue does
        limit = torch.from_numpy(np.partition(sizes.float().cpu().numpy(), out - 1, -1)[..., out - 1 : out]).to(sizes)
        return (sizes > limit) & (sizes >= LEAST)

    return keep


def checked_thresholds(model: LanguageModel, thresholds: Any) -> list[float]:
    """Thresholds as one number for each layer.

    Args:
        model: the model that they are for.
        thresholds: a `Sparsity`, a number for each layer, or one for all layers.

    Raises:
        SparsityError: they are not numbers from 0, or not as many as the model has layers.
    """
    limits = thresholds.thresholds if isinstance(thresholds, HasThresholds) else thresholds
    count = model.network.n_layers
    if isinstance(limits, Tensor | np.ndarray):
        limits = limits.tolist()
    number = as_number(limits)
    if number is not None:
        limits = [number] * count
    if not isinstance(limits, Sequence) or isinstance(limits, str):
        raise SparsityError(f"Thresholds are a Sparsity, a number, or one for each layer, not {shown(limits)}.")
    limits = _numbers(limits)
    if len(limits) != count:
        raise SparsityError(
            f"The call names {counted(len(limits), 'threshold')}, but {model.name} has {counted(count, 'layer')}; give "
            "one for each."
        )
    return limits


@checked(SparsityError)
def _numbers(thresholds: Sequence[Annotated[Number, Ge(0)]]) -> list[float]:
    return [float(one) for one in thresholds]


def keeping_above(model: LanguageModel, thresholds: Sequence[float]) -> list[Keep]:
    """For each layer, the choice of neurons that its threshold keeps."""
    norms = [weights.norm(dim=1) for weights in down_weights(model)]
    return [above(threshold, of) for threshold, of in zip(thresholds, norms, strict=True)]


@dataclass(frozen=True, eq=False)
class NeuronMask:
    """Leaves out some of a layer's neurons at every run; one of a model's `splices`."""

    hook_point: str
    keep: Keep = field(repr=False)

    def splice(self, hook_point: str) -> NeuronMask:
        """Itself: it needs no preparation for a run."""
        return self

    def bind(self, model: Any, plan: Plan) -> list[Edit]:
        """One edit, at all positions."""
        return [Edit(self.hook_point, self._change, source=str(self))]

    def _change(self, values: Tensor) -> Tensor:
        return values * self.keep(values)

    def __str__(self) -> str:
        return f"NeuronMask({self.hook_point})"


@checked(SparsityError)
def with_sparsity(model: LanguageModel, thresholds: Any) -> LanguageModel:
    """A model that runs with weakly contributing neurons left out, at every position of every run.

    It shares the weights of `model`, which does not change. It is not faster: the neurons are set to zero. At
    `mlp.hook_post`, `capture` returns the input of the hook point, before neurons are left out.

    Args:
        model: the model.
        thresholds: a `Sparsity`, or the least magnitude `|a_i| * ||w_down_i||` that is kept, for each layer or one for
            all layers. A threshold of 0 leaves out only what contributes nothing.

    Raises:
        SparsityError: thresholds that don't fit the model, or a model whose neurons are changed already.
    """
    limits = checked_thresholds(model, thresholds)
    points = post_points(model)
    keys = {model.hook_points[name].key for name in model.splices}
    for name in points:
        if model.hook_points[name].key in keys:
            raise SparsityError(f"{model.name} changes its neurons at {name} already; take the model without that.")
    twin = copy.copy(model)
    masks = {name: NeuronMask(name, keep) for name, keep in zip(points, keeping_above(model, limits), strict=True)}
    twin.splices = dict(model.splices) | masks
    twin.about = model.about | {"thresholds": limits}
    twin.hash = _with_limits(model.hash, limits)
    twin.former_hash = _with_limits(model.former_hash, limits)
    twin.name = f"{model.name} (sparse)"
    return twin


def _with_limits(hash: str, limits: Sequence[float]) -> str:
    return hashlib.sha256(f"{hash} {limits!r}".encode()).hexdigest()


@torch.inference_mode()
def cett(values: Tensor, weights: Tensor, keep: Keep) -> Tensor:
    """The cumulative error of tail truncation (CETT) of each token: `[n]`.

    `‖Σ left-out contributions‖ / ‖Σ all contributions‖`; 0 where nothing is left out.

    Args:
        values: of a layer's neurons, `[n, d_mlp]`.
        weights: the vector that each writes, `[d_mlp, d_model]`.
        keep: which neurons take part.
    """
    lost = (values * ~keep(values)) @ weights  # [n, d_model]
    return error_share(lost, values @ weights)


def error_share(lost: Tensor, whole: Tensor) -> Tensor:
    """The length of each row of `lost` over that of `whole`, `[n, d_model]` both: `[n]`; 0 where nothing is lost."""
    return lost.norm(dim=-1) / whole.norm(dim=-1).clamp(min=torch.finfo(whole.dtype).tiny)
