"""Checks of arguments on the public face: types and ranges stand in the signature, and pydantic checks them strictly.

    @checked(SurgeryError)
    def prune(model: LanguageModel, sparsity: Share, *, seed: Natural = 0) -> Child: ...

`prune(model, 1.5)` raises `SurgeryError("sparsity is a number from 0 to 1, not 1.5.")`. Of a class, the arguments of
its constructor are checked. Arguments reach the function unchanged, except numbers of other libraries, which become
Python's: `numpy.int64(3)` becomes 3. A truth value is no number. Classes that are not Python's own are checked by
`isinstance` only.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
)

from workbench.core.errors import WorkbenchError

F = TypeVar("F", bound=Callable[..., Any])
"""A function or a class; checking leaves its type as it is."""


def _integral(value: Any) -> Any:
    """A whole number of another library as Python's."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool | int) else value


def _real(value: Any) -> Any:
    """A number of another library as Python's."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool | int | float) else value


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
        bound = signature.bind(*args, **kwargs)
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
    """The value, as Python's own number where it is one."""
    try:
        valid = adapter.validate_python(value, strict=True)
    except ValidationError as wrong:
        raise error(f"{name} is {described(form)}, not {shown(value)}.") from wrong
    except (RecursionError, OverflowError) as wrong:
        raise error(f"{name} is {described(form)}, not a {type(value).__name__} of this size.") from wrong
    return valid if isinstance(valid, int | float) and type(value) not in (int, float) else value


def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_by_instance(form))


def _by_instance(form: Any) -> Any:
    """A type with every class that is not Python's own replaced by a check with `isinstance`."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        return Annotated[(_by_instance(inner[0]), *inner[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_by_instance, inner))]  # noqa: UP007 - made from a list
    if (origin or form) in MANY and (origin or form) is not collections.abc.Iterable:
        return form if not inner else origin[tuple(one if one is ... else _by_instance(one) for one in inner)]
    if origin is Literal or form in PLAIN or form is Any:
        return form
    return _class_by_instance(origin or form)


def _class_by_instance(kind: Any) -> Any:
    """The check of a class: of protocols and type variables none, of iterables that they are some."""
    if kind is collections.abc.Callable or kind is type:
        return kind
    if not isinstance(kind, type) or kind is collections.abc.Iterator or getattr(kind, "_is_protocol", False):
        return InstanceOf[collections.abc.Iterable] if kind is collections.abc.Iterable else Any
    return InstanceOf[kind]


def described(form: Any) -> str:
    """A type with its ranges in words: "a whole number from 1 to 8, or None"."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        return _ranged(described(inner[0]), [one for one in inner[1:] if isinstance(one, Ge | Gt | Le | Lt)])
    if origin in (Union, types.UnionType):
        words = [described(one) for one in sorted(inner, key=lambda one: one is type(None))]
        return ", ".join(words[:-1]) + (", or " if words[-1] == "None" else " or ") + words[-1]
    if origin is Literal:
        words = [repr(one) for one in inner]
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if (origin or form) in MANY:
        words = [_plural(described(one)) for one in inner if one is not ...]
        joined = " to ".join(words) if (origin or form) is collections.abc.Mapping else ", ".join(dict.fromkeys(words))
        return MANY[origin or form] + (f" of {joined}" if words else "")
    return _named(origin or form)


def _named(kind: Any) -> str:
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is collections.abc.Callable:
        return "a function"
    name = getattr(kind, "__name__", str(kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _ranged(word: str, ends: list[Any]) -> str:
    for one in ends:
        name, words = {Ge: ("ge", "from"), Gt: ("gt", "above"), Le: ("le", "to"), Lt: ("lt", "below")}[type(one)]
        word += f" {words} {getattr(one, name):,}"
    return word


def _plural(word: str) -> str:
    head, _, rest = word.removeprefix("a ").removeprefix("an ").partition(" ")
    if word.startswith("a whole number"):
        return "whole numbers" + word.removeprefix("a whole number")
    if not word.startswith(("a ", "an ")):
        return word
    return (head if head.endswith("s") else head + "s") + (f" {rest}" if rest else "")


def shown(value: Any) -> str:
    """A value in a sentence, in at most about 60 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a stranger's object may refuse to be written
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"
