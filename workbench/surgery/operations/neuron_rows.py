"""Which outputs of which matrices belong to which neuron of a layer, measured where one matrix holds gate and up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.mlp import linear_shape
from workbench.model.modules import sharing_copy
from workbench.model.widened import widen
from workbench.surgery.child_building import SurgeryError

TOKENS = 32
"""Tokens of the pass that shows it."""


def neuron_matrices(model: LanguageModel, layer: int) -> tuple[str, dict[str, Tensor]]:
    """The matrices around the neurons of a layer.

    Returns:
        The path of the down projection; by the path of each matrix that feeds the neurons, the neuron of each of its
        outputs, `[out]`.

    Raises:
        ModelError: the layer has no neurons of its own.
        SurgeryError: an output of a matrix that feeds several neurons, or none on the probe.
    """
    network = model.network
    points = {site: network.neuron_hook_point(layer, site) for site in network.neuron_sites}
    post = points.pop("post")
    down = post.module or ""
    each = torch.arange(post.width, device=model.device)
    if all(point.module for point in points.values()):
        return down, {point.module or "": each for point in points.values()}
    block = down.partition(f".{layer}.")
    prefix = f"{block[0]}.{layer}."
    wide = [
        path
        for path, module in network.module.named_modules()
        if path.startswith(prefix) and linear_shape(module) == (network.d_model, post.width * len(points))
    ]
    for path in wide:
        neurons = _neurons_of(network.module, path, down)
        if neurons is not None and torch.equal(neurons.bincount(minlength=post.width), 0 * each + len(points)):
            return down, {path: neurons}
    raise SurgeryError(
        f"The neurons of {model.name} can't be cut: layer {layer} has no matrix whose outputs each feed one of them."
    )


def _neurons_of(module: Any, path: str, down: str) -> Tensor | None:
    """The neuron that each output of a matrix feeds, `[out]`; None if one feeds none or several.

    A neuron's gradient by an output that feeds it alone is the same factor for two sums over all neurons, of which the
    second counts neuron i so many times: the ratio is the neuron's number.
    """
    twin: Any = sharing_copy(module)  # its hooks do not act on passes of other threads
    widen(twin)  # 16 bits can't hold the number of every neuron
    seen: dict[str, Tensor] = {}

    def feed(_: Any, __: tuple, out: Tensor) -> Tensor:
        seen["out"] = out.detach().requires_grad_(True)
        return seen["out"]

    def read(_: Any, args: tuple) -> None:
        seen["neurons"] = args[0]

    twin.get_submodule(path).register_forward_hook(feed)
    twin.get_submodule(down).register_forward_pre_hook(read)
    tokens = torch.arange(TOKENS, device=module.get_input_embeddings().weight.device)[None] * 37
    with taking_gradients():
        twin(input_ids=tokens % module.get_input_embeddings().weight.shape[0], use_cache=False)
        neurons = seen["neurons"]
        numbers = 1 + torch.arange(neurons.shape[-1], device=neurons.device, dtype=neurons.dtype)
        sums = (neurons.sum(), (neurons * numbers).sum())
        gradients = [torch.autograd.grad(one, seen["out"], retain_graph=True, allow_unused=True)[0] for one in sums]
    if gradients[0] is None or gradients[1] is None:
        return None
    once, counted = (in_float64(one).flatten(0, -2) for one in gradients)  # [tokens, out]
    best = once.abs().argmax(0, keepdim=True)
    ratio = (counted.gather(0, best) / once.gather(0, best))[0] - 1
    if not bool(ratio.isfinite().all()) or bool((ratio - ratio.round()).abs().max() > 0.05):
        return None
    return ratio.round().long().cpu()
