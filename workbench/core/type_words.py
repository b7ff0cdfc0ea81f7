"""Types and values in words, for the sentences of errors: "a whole number from 1 to 8, or None"."""

from __future__ import annotations

import collections.abc
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

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
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Part of how objects are written that says nothing to a person."""
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


def inside(form: Any) -> Any:
    """`Annotated[X | None, range]` as `Annotated[X, range] | None`; every other type as it is."""
    inner, *rest = get_args(form)
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else ()
    if type(None) not in members or not any(isinstance(one, Ge | Gt | Le | Lt) for one in rest):
        return form
    return Union[tuple(one if one is type(None) else Annotated[(one, *rest)] for one in members)]  # noqa: UP007 - as above


def described(form: Any) -> str:
    """A type with its ranges in words: "a whole number from 1 to 8, or None"."""
    return _described(form, _singular)


def _described(form: Any, number: Callable[[str], str]) -> str:
    """A type in words, in the singular or the plural by `number`."""
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        parts = inside(form)
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


def how_to_open(form: Any, value: Any) -> str:
    """The call that makes what a type asks for of a text that stands in its place: "; write wb.load_model("gpt2")".

    A class names the function that opens it as its `opened_by`. Empty where there is none, or no such text.
    """
    origin, inner = get_origin(form), get_args(form)
    if origin is Annotated:
        return how_to_open(inner[0], value)
    if origin in (Union, types.UnionType):
        return next(filter(None, (how_to_open(one, value) for one in inner)), "")
    if origin in MANY and inner and isinstance(value, list | tuple):
        return next(filter(None, (how_to_open(inner[0], one) for one in value[:100])), "")
    call = getattr(form, "opened_by", None)
    if not isinstance(call, str) or not isinstance(value, str | Path) or not str(value):
        return ""
    text = str(value)
    plain = len(text) < 60 and text.isprintable() and not {'"', "\\"} & {*text}
    argument = f'"{text}"' if plain else "..."
    return f"; write {call}({argument})"


def reason_of(error: BaseException) -> str:
    """The first line of an error without its full stop, in at most 300 characters, to stand in another sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ") or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}…"


def shortened(name: str, most: int = 100) -> str:
    """A name in a sentence, without quotes, in at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def shown(value: Any) -> str:
    """A value in a sentence, in one line of at most about 60 characters."""
    if isinstance(value, str | bytes | list | tuple) and len(value) > 100:
        value = value[:100]  # what is written would be cut there anyway
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except Exception:  # noqa: BLE001 - a stranger's object may refuse to be written
        text = f"a {type(value).__name__}"
    text = _ADDRESS.sub("", text)
    return text if len(text) <= 60 else text[:57] + "…" + (text[0] if text[0] in "'\"" else "")
