"""The weights of a plain model: its tensors by name, their hash, their writing; and the lock of building."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.errors import WorkbenchError
from workbench.core.hashing import combined, not_finite, values_digest, values_fingerprint
from workbench.core.type_words import reason_of

LEFT_OUT = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
LEFT_OUT += ("generation_config.json",)
"""Optional files of a model: transformers loads another model without an error where one is lost."""
CHECKPOINT_FILES = ("config.json", "model*.safetensors", "*.safetensors.index.json", "vocab.*", "merges.txt")
CHECKPOINT_FILES += ("tokenizer*.json", "*.model", "*.jinja", *LEFT_OUT)
"""Patterns of the names of a checkpoint's files, as `save_pretrained` of transformers writes them."""

_building = threading.RLock()


class ModelError(WorkbenchError):
    """A model that can't be found, fetched, read or run."""


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Lock the building and saving of models, without progress bars and warnings.

    transformers sets switches of the whole process meanwhile, and two threads at once leave weights out.
    """
    from transformers.utils import logging as messages

    with _building:
        shown, level = messages.is_progress_bar_enabled(), messages.get_verbosity()
        messages.disable_progress_bar()
        messages.set_verbosity_error()
        try:
            yield
        finally:
            messages.set_verbosity(level)
            if shown:
                messages.enable_progress_bar()


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by name, tied ones once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=True)}


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """A model's buffers that its checkpoint holds, by name; most architectures have none."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: tensor.detach() for name, tensor in module.state_dict().items() if name not in parameters}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """All tensors that a model's checkpoint holds, by name: parameters, tied ones once, and buffers."""
    return parameters_of(module) | buffers_of(module)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`, of which a process holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, also where it is sharded over processes; these gather it together."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.inference_mode(False), torch.no_grad():
        return sharded.full_tensor()


def identity(module: nn.Module) -> str:
    """The hash of a model's weights: the fingerprint of the values of all tensors that its checkpoint holds, tied ones
    once.

    A buffer may be infinite, as that of a mask is. Where the weights are sharded over processes, all of these call this
    together.

    Raises:
        ModelError: a weight that is no finite number, a saved buffer that is NaN, or a weight that accelerate offloads.
    """
    tensors, infinite = state_of(module), list(buffers_of(module))
    for name, one in tensors.items():
        if one.is_meta:
            raise ModelError(
                f"{name} of this model is not in memory: accelerate keeps it elsewhere until it is needed; load the "
                "model with a device_map that puts every layer on a device."
            )
    if any(map(is_sharded, tensors.values())):
        return combined(dict(_gathered_digests(tensors, infinite)))
    check_finite(tensors, infinite)
    return values_fingerprint(tensors)


def _gathered_digests(tensors: Mapping[str, Tensor], infinite: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What each tensor adds to the hash; all processes gather one after another, in the order of their names."""
    for name in sorted(tensors):
        one = whole(tensors[name])
        check_finite({name: one}, infinite)
        yield name, values_digest(name, one)


def check_finite(tensors: Mapping[str, Tensor], infinite: Sequence[str]) -> None:
    """Raise `ModelError` where a tensor holds NaN, or infinity and is not among those that may."""
    if wrong := not_finite(tensors, infinite=infinite):
        raise ModelError(
            f"{wrong} of this model holds values that are not finite: its weights are damaged; load it again."
        )


def write_module(module: Any, folder: Path, error: type[WorkbenchError]) -> None:
    """Write a checkpoint with plain transformers; `error` is raised where that refuses a setting of the model."""
    try:
        with building():
            module.save_pretrained(folder)
    except WorkbenchError:  # of a model that no checkpoint holds
        raise
    except (ValueError, TypeError) as wrong:
        reasons = [line.strip("- ") for line in str(wrong).splitlines() if line.startswith("- ")]
        reason = reason_of(ValueError(reasons[0])) if reasons else reason_of(wrong)
        raise error(
            f"transformers does not write this model as it is ({reason}); correct network.module.generation_config or "
            "network.module.config of the model."
        ) from wrong
