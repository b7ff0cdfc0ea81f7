"""Values that an argument may get by mistake, and the rule that says which of them it may really have."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from workbench.core.checks import INFINITE

COUNTER = itertools.count()
NAN, INF = float("nan"), float("inf")


class Unwritable:
    """A stranger's object that can't be written."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> list[Any]:
    """A list in a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "a word": lambda: "no such thing",
    "an empty text": lambda: "",
    "a NUL": lambda: "a\0b",
    "a surrogate": lambda: "a\ud800b",
    "a long text": lambda: "a" * 6000,
    "bytes": lambda: b"x",
    "-1": lambda: -1,
    "0": lambda: 0,
    "a half": lambda: 0.5,
    "nan": lambda: NAN,
    "infinity": lambda: INF,
    "-infinity": lambda: -INF,
    "3e38": lambda: 3e38,
    "1e39": lambda: 1e39,
    "1e-320": lambda: 1e-320,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "a complex number": lambda: 1j,
    "an empty list": lambda: [],
    "a list of True": lambda: [True],
    "a list of None": lambda: [None],
    "a list of nan": lambda: [NAN],
    "a list of -1": lambda: [-1],
    "a list of 10**400": lambda: [10**400],
    "a list of a NUL": lambda: ["\0"],
    "a list of a surrogate": lambda: ["\ud800"],
    "a list of empty texts": lambda: [""],
    "a pair of words": lambda: ("x", "y"),
    "a long list": lambda: [0] * 100_000,
    "a deep list": lambda: nested(100_000),
    "a set": lambda: {1},
    "an empty range": lambda: range(0),
    "an empty mapping": dict,
    "a mapping": lambda: {"\0": None},
    "a mapping of numbers": lambda: {0: NAN},
    "an object": object,
    "an unwritable object": Unwritable,
    "a class": lambda: int,
    "a path": lambda: Path(f"nothing{next(COUNTER)}/x"),
    "a path with a NUL": lambda: Path("a\0b"),
    "an empty tensor": lambda: torch.zeros(0),
    "a tensor of three": lambda: torch.zeros(3),
    "a tensor of no axis": lambda: torch.tensor(1.0),
    "a tensor of nan": lambda: torch.full((2, 32), NAN),
    "a tensor of truth values": lambda: torch.ones(2, 3, dtype=torch.bool),
    "a tensor of whole numbers": lambda: torch.ones(2, 3, dtype=torch.long),
    "a tensor of complex numbers": lambda: torch.ones(2, 32, dtype=torch.complex64),
    "a tensor of five axes": lambda: torch.zeros(1, 1, 1, 1, 32),
    "a double tensor": lambda: torch.zeros(2, 32, dtype=torch.float64),
    "an array of objects": lambda: np.array([None, "x"], dtype=object),
    "a truth value of numpy": lambda: np.bool_(True),
    "nan of numpy": lambda: np.float32("nan"),
}
"""Each made anew for a call."""

SUSPECT = {
    "an empty text",
    "a NUL",
    "a long text",
    "-1",
    "0",
    "3e38",
    "an empty list",
    "an empty mapping",
    "an empty range",
    "a list of -1",
    "a list of a NUL",
    "a list of empty texts",
    "a long list",
    "a word",
}
"""Values that fit many annotations and are seldom meant: where one passes, a table has to say so."""


def meant(form: Any, value: Any) -> bool:  # noqa: PLR0911 - one for each kind of annotation
    """Whether a value belongs to an annotation, in plain Python."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        return _in_range(inner[0], inner[1:], value)
    if origin in (Union, types.UnionType):
        return any(meant(one, value) for one in inner)
    if origin is Literal:
        return any(type(one) is type(value) and one == value for one in inner)
    if form is Any or form is object:
        return True
    if form is None or form is type(None):
        return value is None
    if form is bool:
        return isinstance(value, bool)
    if form in (int, float):
        return _is_number(form, value)
    if form is str:
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        pairs = value.items() if isinstance(value, collections.abc.Mapping) else [(None, None)]
        return all(meant(inner[0], key) and meant(inner[1], one) for key, one in pairs)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return _is_list(inner, value)
    if origin is collections.abc.Callable or form is collections.abc.Callable:
        return callable(value)
    if isinstance(form, TypeVar) or getattr(form, "_is_protocol", False):
        return False
    return isinstance(value, form) if isinstance(form, type) else False


def _in_range(form: Any, notes: typing.Sequence[Any], value: Any) -> bool:
    if get_origin(form) in (Union, types.UnionType):
        return any(_in_range(one, notes, value) for one in get_args(form))
    if value is None and form is type(None):
        return True
    if form is float and INFINITE in notes and isinstance(value, float) and math.isinf(value):
        return True
    ends = {Ge: lambda a, one: a >= one.ge, Gt: lambda a, one: a > one.gt, Le: lambda a, one: a <= one.le}
    ends[Lt] = lambda a, one: a < one.lt
    return meant(form, value) and all(ends[type(one)](value, one) for one in notes if type(one) in ends)


def _is_number(form: Any, value: Any) -> bool:
    if isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    if form is int:
        return isinstance(value, int | np.integer) and -(2**63) <= value < 2**63
    return -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)


def _is_list(inner: tuple[Any, ...], value: Any) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple | range | np.ndarray | Tensor):
        return False
    if isinstance(value, Tensor | np.ndarray):
        return False
    if len(inner) == 2 and inner[1] is not ...:
        return len(value) == 2 and all(meant(form, one) for form, one in zip(inner, value, strict=True))
    return all(meant(inner[0], one) for one in value) if inner else True


def short(text: str) -> str:
    """A sentence as it is quoted in a failure."""
    return text if len(text) < 300 else f"{text[:140]} … {text[-140:]}"


def wrong_sentence(error: BaseException) -> str:
    """Why the words of an error are not one sentence; empty where they are."""
    text = str(error)
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it can't be encoded"
    if not text or "\n" in text or text.rstrip('"')[-1] not in ".?!":
        return "it is not one sentence"
    if len(text) > 5000 or "object at 0x" in text:
        return "it is too long, or shows an address"
    return ""


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Names and annotations of the arguments of a function, or of a class's constructor."""
    if dataclasses.is_dataclass(function):
        hints = typing.get_type_hints(function, include_extras=True)
    else:
        made = function.__init__ if isinstance(function, type) else function
        drawn = {"Figure": Any}  # what `figure` returns is known to type checkers alone, so that Plotly is not imported
        hints = typing.get_type_hints(inspect.unwrap(made), localns=drawn, include_extras=True)
    for name, one in inspect.signature(function).parameters.items():
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and name != "self":
            yield name, hints.get(name, Any)
