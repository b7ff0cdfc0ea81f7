"""JSON of files and strangers: read by one function, against a declared form.

A form is a type that pydantic can check: a `typing_extensions.TypedDict`, `dict[str, int]`, a `Literal`.
`NotRequired` marks the keys that may lack.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from workbench.core.checks import LARGEST_INTEGER
from workbench.core.errors import WorkbenchError
from workbench.core.paths import check_ordinary, has_halves, path_fault
from workbench.core.type_words import reason_of, shown
from workbench.core.validation import validator

T = TypeVar("T")

LARGEST = 256 * 2**20
"""Bytes of a JSON file that is read."""
DEEPEST = 100
"""Levels of lists and objects in each other that are read: fewer than the stack holds."""


def read_json(path: str | Path, form: type[T], error: type[WorkbenchError], what: str, *, infinite: bool = False) -> T:
    """The content of a JSON file in its form.

    Args:
        path: the file, UTF-8.
        form: what it has to be.
        error: the room's own error.
        what: what such a file is, for the sentence: "a certificate".
        infinite: as in `parse_json`.

    Raises:
        WorkbenchError: of the given kind: the file can't be read, is no JSON, or has another form.
    """
    return parse_json(read_text(path, error, what), form, error, f"{path} is not {what}", infinite=infinite)


def read_text(path: str | Path, error: type[WorkbenchError], what: str) -> str:
    """The text of a file in UTF-8; arguments and errors as in `read_json`."""
    if fault := path_fault(path):
        raise error(f"{shown(str(path))} can't be read as {what}: it is no path {fault}.")
    path = Path(path)
    check_ordinary(path, error)
    try:
        if path.stat().st_size > LARGEST:
            raise error(f"{path} is not {what}: it has more than {LARGEST // 2**20} MiB.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise error(f"{path} can't be read as {what}: {reason_of(wrong)}.") from wrong


def parse_json(
    text: str | bytes, form: type[T], error: type[WorkbenchError], complaint: str, *, infinite: bool = False
) -> T:
    """A JSON text in its form.

    Args:
        text: the JSON, nested as deep as `DEEPEST` at most.
        form: what it has to be.
        error: the room's own error.
        complaint: begins the sentence of the error: "This is not a certificate".
        infinite: whether numbers may be infinite or NaN, as Python writes them.

    Raises:
        WorkbenchError: of the given kind: it is no JSON, too deep, holds halves of characters, or has another form.
    """
    numbers: dict[str, Any] = {} if infinite else {"parse_constant": _no_constant, "parse_float": _finite}
    try:
        content = json.loads(text, **numbers)
    except RecursionError as wrong:
        raise error(f"{complaint}: it is nested too deeply.") from wrong
    except (ValueError, UnicodeDecodeError) as wrong:
        raise error(f"{complaint}: it is no JSON ({reason_of(wrong)}).") from wrong
    _check_inside(content, error, complaint)
    return as_form(content, form, error, complaint)


def as_form(content: Any, form: type[T], error: type[WorkbenchError], complaint: str) -> T:
    """Plain data, as JSON holds it, in its form."""
    try:
        return cast("T", _validator(form).validate_python(content, strict=True))
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        place = shown(".".join(map(str, first["loc"]))).strip("'") or "it"
        if first["type"] == "missing":
            raise error(f"{complaint}: it has no {place}.") from wrong
        reason = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        reason = reason.replace("a valid boolean", "true or false")
        raise error(f"{complaint}: {place} should be {reason}, not {shown(first['input'])}.") from wrong
    except (RecursionError, OverflowError) as wrong:
        raise error(f"{complaint}: it is nested too deeply, or a number in it is too large.") from wrong


def fits(content: Any, form: Any) -> bool:
    """Whether plain data has a form and no keys beside those that it declares, at any depth."""
    try:
        _validator(form).validate_python(content, strict=True, extra="forbid")
    except (ValidationError, RecursionError, OverflowError):
        return False
    return True


@functools.cache
def _validator(form: Any) -> SchemaValidator:
    return validator(form)


def _check_inside(content: Any, error: type[WorkbenchError], complaint: str) -> None:
    """Raise where plain data is nested deeper than `DEEPEST`, or a text or number in it can't be kept elsewhere."""
    level = [content]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                if has_halves(one):
                    raise error(f"{complaint}: {shown(one)} holds halves of characters (lone surrogates).")
            elif isinstance(one, int) and abs(one) > LARGEST_INTEGER:
                raise error(f"{complaint}: {shown(one)} has more than 64 bits.")
        if not below:
            return
        level = below
    raise error(f"{complaint}: it is nested too deeply.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
