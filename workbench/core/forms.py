"""JSON of files and strangers: read by one function, against a declared form.

A form is a type that pydantic can check: a `typing_extensions.TypedDict`, `dict[str, int]`, a `Literal`.
`NotRequired` marks the keys that may lack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

T = TypeVar("T")

LARGEST = 256 * 2**20
"""Bytes of a JSON file that is read."""


def read_json(path: Path, form: type[T], error: type[WorkbenchError], what: str) -> T:
    """The content of a JSON file in its form.

    Args:
        path: the file, UTF-8.
        form: what it has to be.
        error: the room's own error.
        what: what such a file is, for the sentence: "a certificate".

    Raises:
        WorkbenchError: of the given kind: the file can't be read, is no JSON, or has another form.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise error(f"{path} is not {what}: it has more than {LARGEST // 2**20} MiB.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as wrong:
        if isinstance(wrong, error):
            raise
        raise error(f"{path} can't be read as {what}: {_first_line(wrong)}.") from wrong
    return parse_json(text, form, error, f"{path} is not {what}")


def parse_json(text: str | bytes, form: type[T], error: type[WorkbenchError], complaint: str) -> T:
    """A JSON text in its form; `complaint` begins the sentence of the error: "This is not a certificate"."""
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except RecursionError as wrong:
        raise error(f"{complaint}: it is nested too deeply.") from wrong
    except (ValueError, UnicodeDecodeError) as wrong:
        raise error(f"{complaint}: it is no JSON ({_first_line(wrong)}).") from wrong
    return as_form(content, form, error, complaint)


def as_form(content: Any, form: type[T], error: type[WorkbenchError], complaint: str) -> T:
    """Plain data, as JSON holds it, in its form."""
    try:
        return cast("T", TypeAdapter(form).validate_python(content, strict=True))
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        if first["type"] == "missing":
            raise error(f"{complaint}: it has no {place}.") from wrong
        reason = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise error(f"{complaint}: {place} should be {reason}, not {shown(first['input'])}.") from wrong
    except RecursionError as wrong:
        raise error(f"{complaint}: it is nested too deeply.") from wrong


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
