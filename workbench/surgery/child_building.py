"""The building of a changed model by plain transformers, from a configuration and mostly shared tensors."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workbench.core.checks import as_integer
from workbench.core.errors import WorkbenchError
from workbench.core.type_words import reason_of
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.modules import sharing_copy
from workbench.model.reading import check_opening, read_config
from workbench.model.weights import building, state_of
from workbench.model.widened import NARROW, widen

LARGE = 1 << 30
"""Bytes of weights from which on saving holds no second copy of them."""
PROBE = 16
"""Tokens of a pass that shows whether two models compute the same."""


class SurgeryError(WorkbenchError):
    """A change that can't be made, held in weights, saved or undone."""


def layers_path(model: LanguageModel) -> str:
    """The path of the layers in the plain module, such as `model.layers`.

    Raises:
        SurgeryError: the path is unclear.
    """
    paths = [
        path
        for path, inner in model.network.module.named_modules()
        if isinstance(inner, nn.ModuleList) and len(inner) == model.network.n_layers
    ]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if len(outer) != 1:
        raise SurgeryError(f"It is unclear where the layers of {model.name} are; this architecture can't be changed.")
    return outer[0]


def keep_layers(
    model: LanguageModel, layers: Sequence[int], changed: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration, for `make_child`, of a model that has only these layers left, in this order.

    Args:
        model: it stays as it is.
        layers: by their numbers, each once.
        changed: tensors that replace the model's, by their names before layers are removed.

    Raises:
        SurgeryError: no layer is left, one that does not exist, or an architecture whose layers depend on their number.
    """
    number = model.network.n_layers
    for layer in layers:
        if not 0 <= (-1 if (whole := as_integer(layer)) is None else whole) < number:
            raise SurgeryError(f"There is no layer {layer!r}: {model.name} has {number} layers, 0 to {number - 1}.")
    layers = [int(layer) for layer in layers]
    if not layers:
        raise SurgeryError("No layer would be left; keep at least one.")
    if len(set(layers)) < len(layers):
        raise SurgeryError(f"A layer is there twice in {layers}; name each once.")
    sizes = model.network.config.get_text_config()
    if getattr(sizes, "scale_attn_by_inverse_layer_idx", False):
        raise SurgeryError(
            f"The layers of {model.name} scale attention by their number and can't move up; remove their attention "
            "and MLP instead."
        )
    prefix = layers_path(model)
    inside = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    tensors = {}
    for place, tensor in (state_of(model.network.module) | dict(changed or {})).items():
        match = inside.fullmatch(place)
        if match is None:
            tensors[place] = tensor
        elif int(match[1]) in layers:
            tensors[f"{prefix}.{layers.index(int(match[1]))}.{match[2]}"] = tensor
    config: dict[str, Any] = {"num_hidden_layers": len(layers)}
    for key, value in sizes.to_dict().items():  # such as layer_types
        if isinstance(value, list | tuple) and len(value) == number and hasattr(sizes, key):
            config[key] = [value[layer] for layer in layers]
    return tensors, config


def changed_config(model: LanguageModel, changes: Mapping[str, Any]) -> Any:
    """A copy of a model's configuration with other values.

    Raises:
        SurgeryError: the configuration has no such value.
    """
    config = copy.deepcopy(model.network.config)
    inner = config.get_text_config()
    for key, value in changes.items():
        if not hasattr(inner, key):
            raise SurgeryError(f"The configuration of {model.name} has no {key!r}, so it can't be changed.")
        setattr(inner, key, value)
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def parameter_shapes(kind: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters and saved buffers of a model of this configuration; nothing is allocated."""
    with building():
        try:
            with torch.device("meta"):
                config = copy.deepcopy(config)
                if isinstance(config.dtype, str):  # as saving leaves it
                    config.dtype = getattr(torch, config.dtype)
                skeleton = kind(config)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError, IndexError) as error:
            raise SurgeryError(f"A {kind.__name__} of this configuration can't be built: {error}.") from error
        return {name: tuple(one.shape) for name, one in state_of(skeleton).items()}


def complete(
    places: Mapping[str, tuple[int, ...]], old: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A tensor for every place, in the parent's type: the parent's own where there is no other or where that is equal;
    and the names of those that are not shared."""
    like = next(iter(old.values()))
    unknown = [name for name in tensors if name not in places]
    if unknown:
        raise SurgeryError(f"The changed model has no place for {unknown[0]}.")
    shared = {tensor.data_ptr() for tensor in old.values()}
    chosen, own = {}, []
    for name, shape in places.items():
        tensor = tensors.get(name)
        if tensor is None:
            if name not in old:
                raise SurgeryError(f"The changed model needs a tensor for {name}.")
            tensor = old[name]
        else:
            tensor = tensor.detach().to(old.get(name, like))  # what is rounded is rounded here, once
            if name in old and equal(old[name], tensor):
                tensor = old[name]
        if tuple(tensor.shape) != shape:
            raise SurgeryError(f"{name} is {list(shape)} in the changed model, not {list(tensor.shape)}.")
        if tensor.data_ptr() not in shared:
            own.append(name)
            tensor = tensor.contiguous()
            tensor = tensor.clone() if tensor.is_inference() else tensor  # a parameter is learned from later
            if not bool(tensor.isfinite().all()):
                raise SurgeryError(f"{name} would hold a value that is not a finite number.")
        chosen[name] = tensor
    return chosen, tuple(own)


def equal(old: Tensor, new: Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    if old.data_ptr() == new.data_ptr() and old.shape == new.shape and old.stride() == new.stride():
        return True
    return old.shape == new.shape and old.dtype == new.dtype and torch.equal(old, new)


def among(old: Mapping[str, Tensor], place: str, tensor: Tensor) -> tuple[Tensor, bool]:
    """The parent's tensor that equals this one, of the same name or of another, if there is any; whether there is."""
    namesake = [old[place]] if place in old else []
    starts = tensor.flatten()[:64]
    others = [one for one in old.values() if one.shape == tensor.shape and torch.equal(one.flatten()[:64], starts)]
    for candidate in [*namesake, *others]:
        if equal(candidate, tensor):
            return candidate, True
    return tensor, False


def build(kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The module that plain transformers makes of a configuration and these tensors, which it shares."""
    like = next(iter(tensors.values()))
    config = copy.deepcopy(config)
    attention = getattr(config, "_attn_implementation", None)
    with building():
        module = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=like.dtype, attn_implementation=attention
        )
    held = state_of(module)
    strange = [
        name for name, one in tensors.items() if name not in held or not equal(held[name], one.to(held[name].device))
    ]
    if strange:
        raise SurgeryError(f"transformers does not take {strange[0]} as it is; this architecture can't be changed.")
    if like.device.type != "cpu":  # transformers has copied the tensors to the processor
        named = itertools.chain(module.named_parameters(), module.named_buffers())
        given = {id(one): tensors[name] for name, one in named if name in tensors}
        module._apply(lambda one: given[id(one)] if id(one) in given else one.to(like.device))
    return module.eval()


def keep_rounded(module: nn.Module, parent: nn.Module) -> None:
    """Give a module that was built anew the parent's buffers where these are its own, rounded to 16 bits.

    `module.to(torch.bfloat16)` rounds what no checkpoint holds, too, such as the frequencies of positions. The parent
    computes with that, and so does its child.
    """
    for name, old in _rounded_buffers(parent, module).items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = old


def _rounded_buffers(module: nn.Module, fresh: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module, by name, that are those of one built anew, rounded."""
    saved, exact = set(module.state_dict()), dict(fresh.named_buffers())
    return {
        name: old
        for name, old in module.named_buffers()
        if name not in saved and name in exact and _is_rounded(old, exact[name])
    }


def _is_rounded(old: Tensor, exact: Tensor) -> bool:
    """Whether a tensor holds the values of another one, rounded to 16 bits, and not those values themselves."""
    if not old.is_floating_point() or old.shape != exact.shape:
        return False
    exact, old = exact.to(old.device), old.to(exact.dtype)
    if torch.equal(old, exact):
        return False
    return any(torch.equal(exact.to(kind).to(exact.dtype), old) for kind in NARROW)


def _opened(folder: Path, module: nn.Module, dtype: torch.dtype) -> Any:
    """The module that plain transformers makes of a checkpoint.

    Where the module that was saved is large and the files hold its tensors to the bit, under its names, it shares them.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    tensors = state_of(module)
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    shared = dict(tensors) if size >= LARGE and _holds(folder, tensors) else None
    with building():
        if shared is None:
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
        config = read_config(folder, local_files_only=True)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return kind.from_pretrained(None, config=config, state_dict=shared, dtype=dtype)


def _holds(folder: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a folder's files hold these tensors to the bit, and no others."""
    held: dict[str, Path] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as inside:
            held |= dict.fromkeys(inside.keys(), file)
    if held.keys() != tensors.keys():
        return False
    for name, file in held.items():
        with safe_open(file, framework="pt") as inside:  # anew for each: the pages of earlier tensors go
            if not equal(tensors[name].cpu(), inside.get_tensor(name)):
                return False
    return True


@torch.no_grad()
def check_checkpoint(model: LanguageModel, folder: Path) -> None:
    """Refuse a checkpoint that plain transformers does not open with the model's logits; both compute in float32.

    Raises:
        SurgeryError: transformers can't open it, or a logit differs by more than a thousandth of the largest.
    """
    module: Any = model.network.module
    weight = module.get_input_embeddings().weight
    try:
        check_opening(folder)
        opened = _opened(folder, module, weight.dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = reason_of(error)
        raise SurgeryError(f"transformers can't open the checkpoint of {model.name}: {reason}.") from error
    if rounded := _rounded_buffers(module, opened):
        raise SurgeryError(
            f"{model.name} was cast to 16 bits once, which rounded its {min(rounded)} too, and no checkpoint holds "
            "that: open the model by its name or folder, with the dtype that it shall have, and operate again."
        )
    tokens = torch.arange(PROBE, device=weight.device)[None] * 37 % weight.shape[0]
    twins: list[Any] = [sharing_copy(one) for one in (module, opened.to(weight.device))]
    for twin in twins:
        widen(twin)
    with uninterrupted():
        wanted, found = (twin(input_ids=tokens, use_cache=False).logits for twin in twins)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=0, atol=tolerance(wanted, wanted.dtype)):
        raise SurgeryError(
            f"A checkpoint of {model.name} would not compute the same: plain transformers opens it with attention "
            f"{opened.config._attn_implementation!r} (here {module.config._attn_implementation!r}) and other logits."
        )


def tolerance(logits: Tensor, dtype: torch.dtype) -> float:
    """How far equal models' logits differ at most: a thousandth of the largest, or more where numbers are coarser."""
    return max(1e-3, 8 * torch.finfo(dtype).eps) * max(float(logits.abs().max()), 1e-6)
