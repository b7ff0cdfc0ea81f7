"""Where a model is and in which type: its device, the type of its weights, and whether there is memory for it."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import reason_of, shown
from workbench.model.weights import building, is_sharded, state_of

AUTO = "auto"
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types that weights are read in where none is asked for by name."""
CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Files in which Linux states limit and use of memory of a container, and how the names in the third begin."""
CGROUP = Path("/sys/fs/cgroup")


def devices() -> list[str]:
    """The names of the devices of this machine, the one that "auto" means first."""
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cards, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def chosen_device(device: str | torch.device, error: type[WorkbenchError]) -> torch.device:
    """The device of a name; for "auto" CUDA, else MPS, else the processor.

    Under `torchrun` "auto" is a card of its own for each process of a machine (`LOCAL_RANK`).

    Args:
        device: as torch writes it, such as "cpu", "cuda", "cuda:1" or "mps".
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: no name of a device, or one that this machine does not have.
    """
    here = devices()
    if isinstance(device, str) and device == AUTO:
        cards = [name for name in here if name.startswith("cuda:")]
        return torch.device(cards[int(os.environ.get("LOCAL_RANK", "0")) % len(cards)] if cards else here[0])
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError
    except RuntimeError:
        raise error(f"There is no device {shown(str(device))}; write {_either([*here, AUTO])}.") from None
    try:
        return torch.empty(1, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError) as reason:
        raise error(
            f"This machine has no device {str(chosen)!r} that torch can use; write {_either([*here, AUTO])}."
        ) from reason


def chosen_dtype(
    dtype: str | torch.dtype, device: torch.device, own: torch.dtype, error: type[WorkbenchError]
) -> torch.dtype:
    """The type of a name; for "auto" a checkpoint's own type on an accelerator, and float32 on the processor.

    Args:
        dtype: as torch writes it, such as "bfloat16".
        device: what computes in it.
        own: the checkpoint's own type.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: no name of a type of floats, or a type that the device can't compute in.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        return own if device.type != "cpu" and own in TYPES and _computes(own, device) else torch.float32
    kind = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."), None)
    names = _either([*map(type_name, TYPES), AUTO])
    if not isinstance(kind, torch.dtype):
        raise error(f"There is no type {shown(dtype)}; write {names}.")
    if not kind.is_floating_point:
        raise error(f"{type_name(kind)} is no type of floats, which the weights of a model are; write {names}.")
    if not _computes(kind, device):
        raise error(f"The device {str(device)!r} can't compute in {type_name(kind)}; write {names}.")
    return kind


def type_name(dtype: torch.dtype) -> str:
    """A type without the name of its library, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies matrices of a type, adds them and applies functions to them."""
    try:
        ones = torch.ones(2, 2, dtype=dtype, device=device)
        summed = ones @ ones + ones
        return bool((summed == 3).all()) and bool(nn.functional.silu(summed).softmax(-1).isfinite().all())
    except (RuntimeError, TypeError):  # NotImplementedError among them
        return False


def _either(names: list[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that is not known.

    What torch keeps for itself without using it counts as free, and so do pages of files that the system can drop.
    """
    if device.type == "cpu":
        return min(psutil.virtual_memory().available, _left_to_container())
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def used_memory(device: torch.device) -> int | None:
    """Bytes that this process uses on a device; None where that is not known."""
    if device.type == "cpu":
        return psutil.Process().memory_info().rss
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return torch.mps.current_allocated_memory() if device.type == "mps" else None


def _left_to_container() -> int:
    """Bytes that the limit of a container leaves to its processes; those of the machine where there is no limit."""
    for limit, use, account, start in CONTAINER:
        with contextlib.suppress(OSError, ValueError, KeyError):
            most, used = (int((CGROUP / name).read_text()) for name in (limit, use))
            stated = dict(line.split() for line in (CGROUP / account).read_text().splitlines())
            return most - used + sum(int(stated[f"{start}{kind}_file"]) for kind in ("active", "inactive"))
    return psutil.virtual_memory().total


def check_memory(name: str, needed: int, device: torch.device, dtype: torch.dtype, error: type[WorkbenchError]) -> None:
    """Refuse a model whose weights do not fit into the memory that is free on a device.

    Args:
        name: of the model, for the sentence.
        needed: bytes of its weights in the type.
        device: where they go.
        dtype: the type.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind.
    """
    free = free_memory(device)
    if free is None or needed <= free:
        return
    advice = 'open it in 16 bits (dtype="bfloat16")' if dtype.itemsize > 2 else "open a smaller model"
    raise error(
        f"The weights of {name} take {needed / 1e9:,.1f} GB in {type_name(dtype)}, and {free / 1e9:,.1f} GB are free "
        f"on the device {str(device)!r}; {advice}, or choose another device."
    )


def parted(module: nn.Module) -> str:
    """How a model's weights are apart, as the end of a sentence that begins with its name; empty on one device."""
    if any(map(is_sharded, module.parameters())):
        return "is sharded over several processes"
    homes = sorted({str(one.device) for one in module.parameters()})
    return f"is spread over several devices ({', '.join(homes)})" if len(homes) > 1 else ""


def placed(
    module: Any, device: torch.device | None, dtype: torch.dtype | None, error: type[WorkbenchError]
) -> nn.Module:
    """A loaded module's weights on a device in a type: the same module where it is so, else a new one.

    The given module stays as it is, and the new one shares what does not change. A module in another type is the one
    that transformers builds in it from the configuration, since types of buffers follow from that of the weights.

    Args:
        module: a loaded Hugging Face model.
        device: None to leave it where it is.
        dtype: None to leave its type.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: there is too little memory, another place or type is asked for and the
            module is spread over several devices or processes, or computes something else than its configuration
            states.
    """
    apart, old = parted(module), next(module.parameters()).device
    if dtype == module.dtype:
        dtype = None
    if dtype is None and (device is None or (old == device and not apart)):
        return module
    if apart:
        raise error(f"This module {apart}; leave device and dtype out, or load it so with transformers.")
    home = device or old
    wanted = dtype or module.dtype
    needed = sum(one.numel() for one in module.parameters()) * wanted.itemsize
    check_memory(type(module).__name__, needed, home, wanted, error)
    if dtype is not None:
        return rebuilt(module, dtype, error).to(home)
    moved: dict[int, Any] = {}
    for one in [*module.parameters(), *module.buffers()]:
        there = one.detach().to(home)
        moved[id(one)] = nn.Parameter(there, one.requires_grad) if isinstance(one, nn.Parameter) else there
    return copy.deepcopy(module, moved)


def rebuilt(module: Any, dtype: torch.dtype, error: type[WorkbenchError]) -> Any:
    """The module that transformers builds in a type from a module's configuration and weights, on the processor.

    Raises:
        WorkbenchError: of the given kind: built in its own type it does not compute what the module does.
    """
    tensors = {name: tensor.cpu() for name, tensor in state_of(module).items()}
    attention = getattr(module.config, "_attn_implementation", None)

    def build(kind: torch.dtype) -> Any:
        with building():
            made: Any = type(module).from_pretrained(
                None,
                config=copy.deepcopy(module.config),
                state_dict=dict(tensors),
                dtype=kind,
                attn_implementation=attention,
            )
        made.generation_config = copy.deepcopy(getattr(module, "generation_config", None))
        return made.train(module.training)

    tokens = torch.arange(8)[None] % module.get_input_embeddings().weight.shape[0]
    try:
        same = _same_logits(module, build(module.dtype).to(module.device), tokens)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as reason:
        raise error(
            f"This module can't be built in {type_name(dtype)} ({reason_of(reason)}); load it with transformers in "
            "that type."
        ) from reason
    if not same:
        raise error(
            "This module computes something else than its configuration states, so it can't be built in another type; "
            f"give it in {type_name(dtype)}."
        )
    return build(dtype)


@torch.no_grad()
def _same_logits(module: Any, twin: Any, tokens: Tensor) -> bool:
    tokens = tokens.to(module.device)
    modes = module.training, twin.training
    module.eval()
    twin.eval()
    try:
        one, other = (model(input_ids=tokens, use_cache=False).logits.float() for model in (module, twin))
    finally:
        module.train(modes[0])
        twin.train(modes[1])
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
