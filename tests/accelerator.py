"""An accelerator that every machine has, for tests of devices.

Its tensors say that they are on a device of their own, `emulated:0`, are computed on the processor, and raise, as those
of a graphics card do, where they meet a tensor of the processor. As there, a number in a tensor without dimensions and
the index of an indexing may be on the processor. What changes the shape of a tensor in place is not emulated.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "emulated"
torch.ones(1, requires_grad=True).sum().backward()
# the first pass back starts a thread for each device that there is then, and forks of a process with such threads can't
# pass back: the device comes later, and its passes run in the thread that asks for them
_setup_privateuseone_for_python_backend(NAME)
DEVICE, SECOND = torch.device(NAME, 0), torch.device(NAME, 1)
NO_FLOAT64 = torch.device(NAME, 2)
"""A device of another kind: it has no numbers of 64 bits but whole ones, as MPS has none."""


class _Module:
    """What torch asks of the module of a device, for automatic mixed precision."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0


for word, function in vars(_Module).items():  # torch has made a module of its own, without these
    if not word.startswith("__"):
        setattr(getattr(torch, NAME), word, function)
MOVES = {"aten::_to_copy", "aten::copy_", "aten::to"}
"""Operations that carry values from one device to another."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""Operations whose index may be on the processor."""
BACK = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
"""What passes back; leaving inference mode allows threads again."""
COMPOSITE = "CompositeImplicitAutograd"
FROM_PYTHON = (torch.tensor, torch.as_tensor, torch.asarray)
"""What makes tensors below the dispatcher."""
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
"""What makes tensors of lists there."""


class OnDevice(torch.Tensor):
    """A tensor of the emulated device, whose values are in `values`."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, device: torch.device = DEVICE) -> OnDevice:
        strided = values.layout == torch.strided  # a sparse one looks like a dense one, and is none to operations
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride() if strided else None,
            storage_offset=values.storage_offset() if strided else None,
            dtype=values.dtype,
            device=device,
            requires_grad=values.requires_grad,
        )
        made.values = values
        return made

    def __init__(self, values: torch.Tensor, device: torch.device = DEVICE):
        pass

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r})"

    def tolist(self) -> Any:
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.values.numpy(force=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = OnDevice(self.values.detach().clone(), self.device)
        if self.requires_grad:
            twin.requires_grad_()
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, self.requires_grad)
        memo[id(self)] = twin
        return twin

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(func, args, kwargs or {})


def _is_emulated(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _device(device: Any) -> torch.device:
    """A device with its number, which is 0 where none is given."""
    return torch.device(NAME, torch.device(device).index or 0)


def _values(one: Any) -> Any:
    return one.values if isinstance(one, OnDevice) else one


def carry_out(func: Any, args: tuple, kwargs: dict) -> Any:
    """The result of one operation of the dispatcher, on the device on which a card would leave it."""
    name = func._schema.name
    if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
        with _Operations():  # outside inference mode autograd has taken it to pieces before
            return func.decompose(*args, **kwargs)
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, OnDevice)]
    here = [one for one in tensors if not isinstance(one, OnDevice) and one.dim() > 0]
    if there and here and name not in MOVES | INDEXED:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu in {name}.")
    on = {one.device for one in there}
    if len(on) > 1 and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and {SECOND} in {name}.")
    if name in INDEXED and not isinstance(args[0], OnDevice) and there:
        raise RuntimeError(f"indices should be on cpu, but found {DEVICE} in {name}.")
    target = kwargs.get("device")
    if kwargs.get("generator") is not None and (there or _is_emulated(target)):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {name}.")
    plain_args, plain_kwargs = tree_map(_values, (args, kwargs))
    if _is_emulated(target):
        plain_kwargs["device"] = torch.device("cpu")
    made = func(*plain_args, **plain_kwargs)
    if name == "aten::copy_" or (func._schema.is_mutable and made is plain_args[0]):
        return args[0]
    on_device = bool(there) if target is None else _is_emulated(target)
    if name not in MOVES and there:
        on_device = True
    known = {id(one.values): one for one in there if not _is_emulated(target) or one.device == _device(target)}
    home = _device(target) if _is_emulated(target) else next(iter(on), DEVICE)

    def placed(one: Any) -> Any:
        if not on_device or not isinstance(one, torch.Tensor) or isinstance(one, OnDevice):
            return one
        if id(one) in known:
            return known[id(one)]
        if home == NO_FLOAT64 and one.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a tensor to {one.dtype}, which {home} does not support, in {name}.")
        with torch.inference_mode(False):
            return OnDevice(one.resolve_conj().resolve_neg(), home)  # the device knows no lazy signs

    return tree_map(placed, made)


def _as_tensors(index: Any) -> Any:
    """An index whose lists are tensors of the processor."""
    if isinstance(index, tuple):
        return tuple(_as_tensors(one) for one in index)
    return torch.tensor(index) if isinstance(index, list) else index


class _FromPython(TorchFunctionMode):
    """Tensors that are made from lists straight on the device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in FROM_PYTHON and _is_emulated(kwargs.get("device")) and not isinstance(args[0], OnDevice):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        if func in INDEXING and isinstance(args[0], OnDevice):
            args = (args[0], _as_tensors(args[1]), *args[2:])
        if func in BACK:
            with torch.autograd.set_multithreading_enabled(False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Operations on tensors of either device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(func, args, kwargs or {})


@contextlib.contextmanager
def emulated() -> Iterator[torch.device]:
    """A block in which the device is there."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # in place, so that what is tied stays tied
    try:
        with _FromPython(), _Operations():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def back(one: Any) -> Any:
    """The same with every tensor on the processor."""
    return tree_map(lambda x: x.values if isinstance(x, OnDevice) else x, one)


def on_accelerator(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that runs where the device is there."""

    @functools.wraps(test)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with emulated():
            return test(*args, **kwargs)

    return inside
