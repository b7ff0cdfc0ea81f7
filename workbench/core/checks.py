"""Checks of arguments on the public face: types and ranges stand in the signature, and pydantic checks them strictly.

    @checked(SurgeryError)
    def prune(model: LanguageModel, sparsity: Share, *, seed: Natural = 0) -> Child: ...

`prune(model, 1.5)` raises `SurgeryError("sparsity is a number from 0 to 1, not 1.5.")`. Of a class, the arguments of
its constructor are checked. Arguments reach the function unchanged, except numbers of other libraries, which become
Python's: `numpy.int64(3)` and `torch.tensor(3)` become 3, and a container of such numbers is built anew. A truth value
is no number. `int` and `float` mean `Integer` and `Number`; `Annotated[float, INFINITE]` takes infinity too. A text
holds no halves of characters, which no file and no tokenizer takes, and `str | Path` is a path that a file system can
hold. A `Sequence` may be any ordered iterable with a length, such as a range or an array, but no text, tensor or set.
Classes that are not Python's own are checked by `isinstance` only.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    Field,
    InstanceOf,
    ValidationError,
)
from pydantic_core import SchemaValidator
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.paths import has_halves, path_fault
from workbench.core.progress import reporting
from workbench.core.type_words import MANY, PLAIN, described, how_to_open, inside, shown
from workbench.core.validation import validator

F = TypeVar("F", bound=Callable[..., Any])
"""A function or a class; checking leaves its type as it is."""


LARGEST_INTEGER = 2**63 - 1
"""Of 64 bits; the same below 0. No size, seed or number of steps is larger."""


class _Unfit(ValueError):
    """A value of the right type that can't be used; the message goes on after the type's words."""


@dataclass(frozen=True)
class Raises:
    """Added to a type where another error than the function's own is raised: `Annotated[str, Raises(PromptError)]`."""

    error: type[WorkbenchError]


def _scalar(value: Any) -> Any:
    """The number that a tensor without axes holds; every other value, and one that gradients are taken by, as it is."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad and not value.is_meta:
        return value.item()
    return value


def as_integer(value: Any) -> int | None:
    """A whole number of any library as Python's; None for anything else, and for a truth value."""
    value = _scalar(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_number(value: Any) -> int | float | None:
    """A finite number of any library as Python's; None for anything else, and for a truth value."""
    value = _scalar(value)
    whole = as_integer(value)
    if whole is not None or isinstance(value, bool) or not isinstance(value, Real):
        return whole
    try:
        number = float(value)
    except OverflowError:  # a fraction
        return None
    return number if math.isfinite(number) else None


def _integral(value: Any) -> int:
    """A whole number as Python's, before pydantic's check."""
    whole = as_integer(value)
    if whole is None:
        raise ValueError("a whole number")
    if abs(whole) > LARGEST_INTEGER:
        raise _Unfit("of at most 64 bits")
    return whole


def _real(value: Any) -> int | float:
    """A number as Python's, before pydantic's check; infinity passes, nan does not."""
    value = _scalar(value)
    if isinstance(value, Integral):
        return _integral(value)
    if not isinstance(value, Real) or math.isnan(value):
        raise ValueError("a number")
    return float(value)


def _text(value: Any) -> Any:
    """A text, before pydantic's check."""
    if isinstance(value, str) and has_halves(value):
        raise _Unfit("without halves of characters (lone surrogates)")
    return value


def _path(value: Any) -> Any:
    """A path, before pydantic's check."""
    if isinstance(value, str | Path) and (fault := path_fault(value)):
        raise _Unfit(fault)
    return value


def _floating(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise _Unfit("of floating-point numbers")
    return value


def _whole(value: Tensor) -> Tensor:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise _Unfit("of whole numbers")
    return value


def _flags(value: Tensor) -> Tensor:
    if value.dtype != torch.bool:
        raise _Unfit("of truth values")
    return value


Integer = Annotated[int, BeforeValidator(_integral)]
"""A whole number of at most 64 bits; a range is added as `Annotated[Integer, Ge(2), Le(16)]`."""
Number = Annotated[float, BeforeValidator(_real), Field(allow_inf_nan=False)]
"""A finite number."""
Natural = Annotated[Integer, Ge(0)]
"""A whole number from 0."""
Positive = Annotated[Integer, Ge(1)]
"""A whole number from 1."""
Share = Annotated[Number, Ge(0), Le(1)]
"""A number from 0 to 1, both allowed."""
PositiveNumber = Annotated[Number, Gt(0)]
"""A finite number above 0."""
Rate = Annotated[Number, Gt(0), Le(3e38)]
"""Such as a learning rate: a positive number that float32 holds."""

Floats = Annotated[Tensor, AfterValidator(_floating)]
"""A tensor of floating-point numbers."""
Wholes = Annotated[Tensor, AfterValidator(_whole)]
"""A tensor of whole numbers."""
Flags = Annotated[Tensor, AfterValidator(_flags)]
"""A tensor of truth values."""

INFINITE = AllowInfNan(True)
"""Added to `float` where infinity is allowed: `Annotated[float, INFINITE]`."""

NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "numel: integer")
"""What torch says where sizes are too large."""
UNORDERED = (set, frozenset)
"""What is no sequence, though it has a length and can be iterated over."""
ONE_VALUE = (str, bytes, bytearray, memoryview, Tensor, collections.abc.Mapping)
"""What counts as one value, though it can be iterated over."""


@typing.overload
def checked(error: type[WorkbenchError]) -> Callable[[F], F]: ...
@typing.overload
def checked(error: type[WorkbenchError], of: F) -> F: ...
def checked(error: type[WorkbenchError], of: Callable[..., Any] | None = None) -> Any:
    """A decorator that checks the arguments of a function, or of a class's constructor, against its annotations.

    Args:
        error: the room's own error, raised with one sentence that names the argument, what it may be and what it is.
        of: the function; the decorator is returned without it.
    """
    if of is None:
        return functools.partial(checked, error)
    if isinstance(of, type):
        of.__init__ = _checking(error, of.__init__)  # type: ignore[misc]
        return of
    return _checking(error, of)


def _checking(error: type[WorkbenchError], function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    tells = "progress" in signature.parameters

    @functools.cache
    def adapters() -> dict[str, tuple[SchemaValidator, Any]]:
        hints = typing.get_type_hints(function, include_extras=True)
        hints.pop("return", None)
        forms = {name: form for name, form in hints.items() if form is not Any}
        return {name: (_adapter(form), form) for name, form in forms.items()}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises Python's own message, with the function's name
        for name, value in bound.arguments.items():
            if name not in adapters():
                continue
            adapter, form = adapters()[name]
            own = next((one.error for one in getattr(form, "__metadata__", ()) if isinstance(one, Raises)), error)
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: _checked(own, adapter, form, key, one) for key, one in value.items()}
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_checked(own, adapter, form, name, one) for one in value)
            else:
                bound.arguments[name] = _checked(own, adapter, form, name, value)
        try:
            if tells:
                with reporting(bound.arguments.get("progress")) as bound.arguments["progress"]:
                    return function(*bound.args, **bound.kwargs)
            return function(*bound.args, **bound.kwargs)
        except (RuntimeError, MemoryError) as wrong:  # torch has no kind of its own for it on processors
            if isinstance(wrong, MemoryError) or any(words in str(wrong) for words in NO_MEMORY):
                raise error("There is not enough memory for this; choose smaller sizes.") from wrong
            raise
        except PermissionError as wrong:  # of a place that may not even be looked at
            if wrong.filename:
                raise error(f"{wrong.filename} can't be used: {wrong.strerror}.") from wrong
            raise

    return call


def _checked(error: type[WorkbenchError], adapter: SchemaValidator, form: Any, name: str, value: Any) -> Any:
    """The value, with Python's own numbers for those of other libraries."""
    try:
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as wrong:
        faults = (one.get("ctx", {}).get("error") for one in wrong.errors(include_url=False, include_input=False))
        fault = next((f" {one}" for one in faults if isinstance(one, _Unfit)), "")
        words, none, _ = described(form).partition(", or None")
        raise error(f"{name} is {words}{fault}{none}, not {shown(value)}{how_to_open(form, value)}.") from wrong
    except (RecursionError, OverflowError) as wrong:
        raise error(f"{name} is {described(form)}, not a {type(value).__name__} of this size.") from wrong
    return _arriving(value, valid)


def _arriving(value: Any, valid: Any) -> Any:
    """The value itself, or, where pydantic's result has a number of another type, its copy with Python's numbers."""
    if valid is value:
        return value
    if isinstance(valid, int | float):
        return value if type(value) in (int, float) else valid
    if isinstance(valid, dict):
        old = [one for pair in value.items() for one in pair]
        new = [_arriving(*both) for both in zip(old, (one for pair in valid.items() for one in pair), strict=True)]
        return value if _same(old, new) else dict(zip(new[::2], new[1::2], strict=True))
    if isinstance(valid, list | tuple):
        old = list(value)
        new = [_arriving(*both) for both in zip(old, valid, strict=True)]
        kind = next((kind for kind in (tuple, set, frozenset) if isinstance(value, kind)), list)
        return value if _same(old, new) else kind(new)
    return value


def _same(old: list[Any], new: list[Any]) -> bool:
    return all(one is other for one, other in zip(old, new, strict=True))


def _adapter(form: Any) -> SchemaValidator:
    return validator(_by_instance(form))


def _by_instance(form: Any) -> Any:
    """A type with every class that is not Python's own replaced by a check with `isinstance`."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        return _annotated(inside(form))
    if origin in (Union, types.UnionType):
        members = Union[tuple(map(_by_instance, inner))]  # noqa: UP007 - made from a list
        return Annotated[members, BeforeValidator(_path)] if {str, Path} <= {*inner} else members
    if (origin or form) in MANY:
        return _container(origin or form, inner)
    if origin is Literal:
        return Annotated[form, BeforeValidator(functools.partial(_literal, inner))]
    usual = {int: Integer, float: Number, str: Annotated[str, BeforeValidator(_text)]}
    if form in usual:
        return usual[form]
    return form if form in PLAIN or form is Any else _class_by_instance(origin or form)


def _annotated(form: Any) -> Any:
    if get_origin(form) is not Annotated:
        return _by_instance(form)
    inner, *rest = get_args(form)
    if inner is float and INFINITE in rest:
        return Annotated[(float, BeforeValidator(_real), *(one for one in rest if one is not INFINITE))]
    return Annotated[(_by_instance(inner), *rest)]


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    """The choice that is equal and of the same type: neither True nor 1.0 is 1."""
    whole = as_integer(value)
    for one in choices:
        same = whole == one if type(one) is int else isinstance(value, type(one)) and value == one
        if same:
            return one
    raise ValueError("no such choice")


def _container(kind: Any, inner: tuple[Any, ...]) -> Any:
    """The check of a container, of a copy that is a list, a tuple or a dict."""
    if kind is collections.abc.Iterable:
        return Annotated[InstanceOf[kind], BeforeValidator(_iterable)]
    parts = tuple(one if one is ... else _by_instance(one) for one in inner)
    if kind is collections.abc.Mapping:
        return Annotated[dict[parts or (Any, Any)], BeforeValidator(_as_dict)]  # type: ignore[misc]
    if kind is tuple and parts and parts[-1] is not ...:
        return Annotated[tuple[parts], BeforeValidator(_as_tuple)]  # type: ignore[valid-type]
    return Annotated[list[parts[0] if parts else Any], BeforeValidator(functools.partial(_as_list, kind))]  # type: ignore[misc]


def _iterable(value: Any) -> Any:
    if isinstance(value, ONE_VALUE):
        raise ValueError("one value")
    return value


def _as_dict(value: Any) -> Any:
    return dict(value) if isinstance(value, collections.abc.Mapping) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_list(kind: Any, value: Any) -> list[Any]:
    """The members of a container of a kind; an ordered or any iterable with a length counts as Sequence or Collection.

    A table of two dimensions counts only where its rows can be iterated over, as an array's can.
    """
    refused = ONE_VALUE if kind is collections.abc.Collection else (*ONE_VALUE, *UNORDERED)
    if kind in (list, tuple, set):
        fits = isinstance(value, (set, frozenset) if kind is set else kind)
    else:
        fits = not isinstance(value, (type, *refused)) and hasattr(value, "__len__") and hasattr(value, "__iter__")
        fits = fits and (getattr(value, "ndim", 1) == 1 or hasattr(value, "tolist"))
    with contextlib.suppress(TypeError):  # an array of no dimension
        if fits:
            return list(value)  # pyright: ignore[reportArgumentType]
    raise ValueError("another kind of container")


def _class_by_instance(kind: Any) -> Any:
    """The check of a class: of iterators, type variables, and protocols that are not `runtime_checkable` none."""
    if kind is collections.abc.Callable or kind is type:
        return kind
    if not isinstance(kind, type) or kind is collections.abc.Iterator:
        return Any
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return Any
    return InstanceOf[kind]
