"""The matrices of a model's layers wherever they are stored: in linear modules, and in parameters of many experts.

A layer of experts holds one parameter `[experts, out, in]`, or `[experts, in, out]`, instead of linear modules. Each
expert counts as one matrix. Which axis is the input is measured: the gradient of a weight is zero where its input is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.grad_mode import taking_gradients
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.modules import is_conv1d
from workbench.model.weights import parameters_of
from workbench.surgery.child_building import SurgeryError, layers_path

PROBE = 32
"""Tokens of the pass that shows which axis of a parameter is the input."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the layers.

    Attributes:
        name: of the parameter that holds it.
        expert: index along the parameter's first axis; None where the parameter is the matrix.
        turned: whether it is stored as `[in, out]`.
        linear: whether a linear module holds it, so that a hook sees its inputs.
    """

    name: str
    expert: int | None
    turned: bool
    linear: bool

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The matrix as `[out, in]`; a view of the parameter."""
        stored = parameters[self.name]
        stored = stored if self.expert is None else stored[self.expert]
        return stored.T if self.turned else stored

    def put(self, matrix: Tensor, tensors: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """Put a matrix `[out, in]` into `tensors` as it is stored and in the parameter's type; other experts are copied
        from `parameters`."""
        stored = (matrix.T if self.turned else matrix).to(parameters[self.name].dtype)
        if self.expert is None:
            tensors[self.name] = stored.contiguous()
            return
        if self.name not in tensors:
            tensors[self.name] = parameters[self.name].clone()
        tensors[self.name][self.expert] = stored


def all_matrices(model: LanguageModel) -> dict[str, Matrix]:
    """All matrices of the layers by path: `model.layers.3.mlp.down_proj`, or `model.layers.3.mlp.experts.down_proj.0`.

    Parameters of two or more dimensions whose axes a pass does not show are left out; `coverage` counts them.

    Raises:
        SurgeryError: an architecture without layers or without matrices in them.
    """
    module: Any = model.network.module
    prefix = layers_path(model)
    found: dict[str, Matrix] = {}
    loose: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if not path.startswith(f"{prefix}."):
            continue
        if isinstance(part, nn.Linear) or is_conv1d(part):
            found[path] = Matrix(f"{path}.weight", None, is_conv1d(part), True)
        elif not isinstance(part, nn.Embedding) and _matrices_in(part):
            loose[path] = part
            for name in _matrices_in(part):  # holds the place in the order of the model
                found[f"{path}.{name}"] = Matrix("", None, False, False)
    turned = _turned(model, loose) if loose else {}
    placed: dict[str, Matrix] = {}
    parameters = parameters_of(module)
    for path, one in found.items():
        if one.name:
            placed[path] = one
        elif path in turned and path in parameters:
            if parameters[path].ndim == 2:
                placed[path] = Matrix(path, None, turned[path], False)
            else:
                experts = range(parameters[path].shape[0])
                placed |= {f"{path}.{expert}": Matrix(path, expert, turned[path], False) for expert in experts}
    if not placed:
        raise SurgeryError(f"The layers of {model.name} hold no matrix.")
    return placed


def coverage(model: LanguageModel, chosen: Mapping[str, Matrix]) -> float:
    """The share of the layers' weights, of parameters with two or more dimensions, that these matrices hold."""
    parameters = parameters_of(model.network.module)
    prefix = layers_path(model)
    total = sum(one.numel() for name, one in parameters.items() if name.startswith(f"{prefix}.") and one.ndim >= 2)
    return round(sum(one.of(parameters).numel() for one in chosen.values()) / max(total, 1), 6)


def check_coverage(model: LanguageModel, chosen: Mapping[str, Matrix]) -> float:
    """`coverage`, where it is nearly all.

    Raises:
        SurgeryError: more than a twentieth of the weights is stored in a form that can't be read.
    """
    share = coverage(model, chosen)
    if share < 0.95:
        raise SurgeryError(
            f"Only {share:.0%} of the weights in the layers of {model.name} are in matrices that can be told apart, so "
            "this operation would leave the others as they are."
        )
    return share


def _matrices_in(module: nn.Module) -> list[str]:
    """Names of a module's own parameters that hold matrices: of three dimensions, or of two.

    Beside a parameter of three dimensions, one of two with the same number of experts holds their biases.
    """
    own = dict(module.named_parameters(recurse=False))
    experts = {one.shape[0] for one in own.values() if one.ndim == 3}
    return [name for name, one in own.items() if one.ndim == 3 or (one.ndim == 2 and one.shape[0] not in experts)]


def _turned(model: LanguageModel, modules: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Whether each parameter is stored as `[…, in, out]`, by its name; those that stay unclear are missing."""
    calls: dict[str, tuple[tuple, dict[str, Any]]] = {}

    def watch(path: str) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls[path] = args, kwargs

        return hook

    handles = [part.register_forward_pre_hook(watch(path), with_kwargs=True) for path, part in modules.items()]
    module: Any = model.network.module
    embedding = module.get_input_embeddings().weight
    tokens = torch.arange(PROBE, device=embedding.device)[None] * 37 % embedding.shape[0]
    try:
        with uninterrupted(), torch.no_grad():
            module(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for path, (args, kwargs) in calls.items():
        for name, axis in _input_axes(modules[path], args, kwargs).items():
            found[f"{path}.{name}"] = axis == -2
    return found


@taking_gradients()
def _input_axes(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, int]:
    """The input's axis, -1 or -2, of each matrix of a module, from gradients of its output.

    Where the first number of the module's input is zero, so are the gradients of the weights that it meets. Where only
    the first number of the output counts, only weights that lead to it have gradients.
    """
    names = _matrices_in(module)
    weights = {name: getattr(module, name).detach().clone().requires_grad_() for name in names}
    read = next((one for one in [*args, *kwargs.values()] if isinstance(one, Tensor) and one.is_floating_point()), None)
    if read is None:
        return {}
    silent = read.detach().clone()
    silent[..., 0] = 0
    args = tuple(silent if one is read else one for one in args)
    kwargs = {key: silent if one is read else one for key, one in kwargs.items()}
    output: Any = torch.func.functional_call(module, weights, args, kwargs)
    output = next((one for one in output if one.is_floating_point()), None) if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or not output.requires_grad:
        return {}
    mix = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    ends = [output.mul(mix).sum(), output[..., 0].sum()]
    read_from, written_to = (
        torch.autograd.grad(end, list(weights.values()), retain_graph=True, allow_unused=True) for end in ends
    )
    found = {}
    for name, first, second in zip(names, read_from, written_to, strict=True):
        if first is None or second is None:
            continue
        inputs = {axis for axis in (-1, -2) if _lines(first, axis) == "all but the first"}
        inputs |= {-3 - axis for axis in (-1, -2) if _lines(second, axis) == "only the first"}
        if len(inputs) == 1:
            found[name] = inputs.pop()
    return found


def _lines(gradient: Tensor, axis: int) -> str:
    """Which lines along an axis have a gradient."""
    alive = gradient.abs().movedim(axis, 0).flatten(1).amax(1) > 0
    if len(alive) < 2:
        return "unclear"
    if not alive[0] and bool(alive[1:].all()):
        return "all but the first"
    return "only the first" if alive[0] and not alive[1:].any() else "unclear"
