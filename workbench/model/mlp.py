"""The neurons of a layer: whether a hook point carries them.

Names of TransformerLens don't decide it. The shapes of the plain modules do.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from workbench.model.hookpoints import HookPoint
from workbench.model.modules import is_conv1d
from workbench.model.weights import ModelError


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


def unread_weights(weights: str, point: HookPoint, apart: float | None, dtype: torch.dtype) -> ModelError:
    """The error for weights of neurons that no plain module carries, with what was seen.

    Args:
        weights: gate, up or down.
        point: the hook point of the neurons.
        apart: the largest difference between the plain module's tensor there and TransformerLens's, as a share of the
            largest value; None where no plain module stands for it.
        dtype: the model's.
    """
    if apart is None:
        return ModelError(
            f"The {weights} weights of this model can't be decoded: no module of its own computes {point.name}, where "
            "TransformerLens takes a joined matrix apart."
        )
    kind = str(dtype).removeprefix("torch.")
    return ModelError(
        f"The {weights} weights of this model can't be decoded: at {point.name} the model and TransformerLens differ "
        f"by {apart:.1%} of the largest value in {kind}, so they may compute different things; open the model with "
        "dtype='float32'."
    )


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
