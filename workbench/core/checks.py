"""Checks of arguments on the public face: types and ranges stand in the signature, and pydantic checks them strictly.

    @checked(SurgeryError)
    def prune(model: LanguageModel, sparsity: Share, *, seed: Natural = 0) -> Child: ...

`prune(model, 1.5)` raises `SurgeryError("sparsity is a number from 0 to 1, not 1.5.")`. Of a class, the arguments of
its constructor are checked. Arguments reach the function unchanged, except numbers of other libraries, which become
Python's: `numpy.int64(3)` becomes 3, and a container of such numbers is built anew. A truth value is no number. `int`
and `float` mean `Integer` and `Number`; `Annotated[float, INFINITE]` takes infinity too. A `Sequence`
may be any ordered iterable with a length, such as a range or an array, but no text and no set. Classes that are not
Python's own are checked by `isinstance` only.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AllowInfNan,
    BeforeValidator,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
)

from workbench.core.errors import WorkbenchError

F = TypeVar("F", bound=Callable[..., Any])
"""A function or a class; checking leaves its type as it is."""


def as_integer(value: Any) -> int | None:
    """A whole number of any library as Python's; None for anything else, and for a truth value."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_number(value: Any) -> int | float | None:
    """A finite number of any library as Python's; None for anything else, and for a truth value."""
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
        raise ValueError("no whole number")
    return whole


def _real(value: Any) -> int | float:
    """A number as Python's, before pydantic's check; infinity passes, nan does not."""
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise ValueError("no number")
    return int(value) if isinstance(value, Integral) else float(value)


Integer = Annotated[int, BeforeValidator(_integral)]
"""A whole number; a range is added as `Annotated[Integer, Ge(2), Le(16)]`."""
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

INFINITE = AllowInfNan(True)
"""Added to `float` where infinity is allowed: `Annotated[float, INFINITE]`."""

PLAIN = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    bytes: "bytes",
    type(None): "None",
    dict: "a mapping",
}
"""Types that pydantic checks itself, in words."""
MANY = {
    list: "a list",
    tuple: "a tuple",
    set: "a set",
    collections.abc.Sequence: "a list",
    collections.abc.Iterable: "an iterable",
    collections.abc.Collection: "a collection",
    collections.abc.Mapping: "a mapping",
}
"""Types of containers, in words; their contents are checked, except those of an iterable."""
UNORDERED = (set, frozenset, collections.abc.Mapping)
"""What is no sequence, though it has a length and can be iterated over."""
ONE_VALUE = (str, bytes, bytearray, memoryview)
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

    @functools.cache
    def adapters() -> dict[str, tuple[TypeAdapter[Any], Any]]:
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
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: _checked(error, adapter, form, key, one) for key, one in value.items()}
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_checked(error, adapter, form, name, one) for one in value)
            else:
                bound.arguments[name] = _checked(error, adapter, form, name, value)
        return function(*bound.args, **bound.kwargs)

    return call


def _checked(error: type[WorkbenchError], adapter: TypeAdapter[Any], form: Any, name: str, value: Any) -> Any:
    """The value, with Python's own numbers for those of other libraries."""
    try:
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as wrong:
        raise error(f"{name} is {described(form)}, not {shown(value)}.") from wrong
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


def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_by_instance(form))


def _by_instance(form: Any) -> Any:
    """A type with every class that is not Python's own replaced by a check with `isinstance`."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        parts = _inside(form)
        if inner[0] is float and INFINITE in inner:
            return Annotated[(float, BeforeValidator(_real), *inner[1:])]
        return _by_instance(parts) if parts is not form else Annotated[(_by_instance(inner[0]), *inner[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_by_instance, inner))]  # noqa: UP007 - made from a list
    if (origin or form) in MANY:
        return _container(origin or form, inner)
    if origin is Literal:
        return Annotated[form, BeforeValidator(functools.partial(_literal, inner))]
    if form in (int, float):
        return Integer if form is int else Number
    return form if form in PLAIN or form is Any else _class_by_instance(origin or form)


def _inside(form: Any) -> Any:
    """`Annotated[X | None, range]` as `Annotated[X, range] | None`; every other type as it is."""
    inner, *rest = get_args(form)
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else ()
    if type(None) not in members or not any(isinstance(one, Ge | Gt | Le | Lt) for one in rest):
        return form
    return Union[tuple(one if one is type(None) else Annotated[(one, *rest)] for one in members)]  # noqa: UP007 - as above


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
    try:
        if fits:
            return list(value)
    except TypeError:  # an array of no dimension
        pass
    raise ValueError("another kind of container")


def _class_by_instance(kind: Any) -> Any:
    """The check of a class: of protocols, iterators and type variables none."""
    if kind is collections.abc.Callable or kind is type:
        return kind
    if not isinstance(kind, type) or kind is collections.abc.Iterator or getattr(kind, "_is_protocol", False):
        return Any
    return InstanceOf[kind]


def described(form: Any) -> str:
    """A type with its ranges in words: "a whole number from 1 to 8, or None"."""
    return _described(form, _singular)


def _described(form: Any, number: Callable[[str], str]) -> str:
    """A type in words, in the singular or the plural by `number`."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        parts = _inside(form)
        if parts is not form:
            return _described(parts, number)
        return _ranged(_described(inner[0], number), [one for one in inner[1:] if isinstance(one, Ge | Gt | Le | Lt)])
    if origin in (Union, types.UnionType):
        words = [_described(one, number) for one in sorted(inner, key=lambda one: one is type(None))]
        return ", ".join(words[:-1]) + (", or " if words[-1] == "None" else " or ") + words[-1]
    if origin is Literal:
        words = [repr(one) for one in inner]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if (origin or form) in MANY:
        return number(_contents(origin or form, inner))
    return number(_named(origin or form))


def _contents(kind: Any, inner: tuple[Any, ...]) -> str:
    """A container in words: "a list of texts", "a pair of numbers", "a pair of a Feature and a number"."""
    words = [_described(one, _plural) for one in inner if one is not ...]
    if kind is collections.abc.Mapping and words:
        return f"{MANY[kind]} of {words[0]} to {words[1]}"
    if kind is not tuple or not words or inner[-1] is ...:
        return MANY[kind] + (f" of {words[0]}" if words else "")
    several = "a pair of" if len(words) == 2 else f"a tuple of {len(words)}"
    if len(set(words)) == 1:
        return f"{several} {words[0]}"
    words = [described(one) for one in inner]
    return f"{several.removesuffix(f' {len(words)}')} {', '.join(words[:-1])} and {words[-1]}"


def _named(kind: Any) -> str:
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is collections.abc.Callable:
        return "a function"
    if kind is Any:
        return "anything"
    name = getattr(kind, "__name__", str(kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _ranged(word: str, ends: list[Any]) -> str:
    for one in ends:
        name, words = {Ge: ("ge", "from"), Gt: ("gt", "above"), Le: ("le", "to"), Lt: ("lt", "below")}[type(one)]
        word += f" {words} {getattr(one, name):,}"
    return word


def _singular(word: str) -> str:
    return word


def _plural(word: str) -> str:
    """The plural of words that begin with an article: "a list of texts" becomes "lists of texts"."""
    if word == PLAIN[int]:
        return "whole numbers"
    if not word.startswith(("a ", "an ")):
        return word
    head, *rest = word.split(" ")[1:]
    if head == "Child":
        head = "Children"
    elif head.endswith("y") and head[-2:-1] not in "aeiou":
        head = f"{head[:-1]}ies"
    elif not head.endswith("s"):
        head = f"{head}s"
    return " ".join([head, *rest])


def shown(value: Any) -> str:
    """A value in a sentence, in one line of at most about 60 characters."""
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except Exception:  # noqa: BLE001 - a stranger's object may refuse to be written
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"
