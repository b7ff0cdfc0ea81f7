"""What a saver may replace: what it could itself have written.

A file takes the place of a file, a folder that of a folder. A file must have the same form as the new one: JSON, or
lines of JSON, with the same keys, and with no others inside than the saver's declared form has; Parquet and CSV with
the same columns; another format with the same first bytes. A folder must hold only files that the new one has too or
that the saver names. What is empty may always be replaced.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.forms import fits

LARGEST = 256 * 2**20
"""Bytes of a JSON file whose keys are compared; of a larger one the first sign counts."""
MAGIC = {b"PAR1": "Parquet", b"SQLite format 3\0": "SQLite", b"PK\x03\x04": "a zip archive", b"GGUF": "GGUF"}


@dataclass(frozen=True)
class FileForm:
    """What kind of content a file has, as far as its form says it."""

    words: str
    """The format, in words."""
    parts: frozenset[str] = frozenset()
    """Keys of JSON, columns of a table."""

    def could_replace(self, old: FileForm, former: Sequence[Collection[str]] = ()) -> bool:
        """Whether a saver of this form could have written `old`: it has the same parts, or some of an older version."""
        return self.words == old.words and old.parts in (self.parts, *map(frozenset, former))


def check_place(
    target: Path,
    new: Path,
    error: type[WorkbenchError],
    *,
    own: Sequence[str] = (),
    note: str = "",
    owned: bool = False,
    form: Any = None,
    former: Sequence[Collection[str]] = (),
) -> None:
    """Check that `new`, which was written, may take the place of `target`; arguments as in `files.replacing`.

    Raises:
        WorkbenchError: of the given kind: there is something else.
    """
    if wrong := _obstacle(target, new, own=own, note=note, owned=owned, form=form, former=former):
        raise error(f"{target} {wrong}.")


def _obstacle(
    target: Path,
    new: Path,
    *,
    own: Sequence[str],
    note: str,
    owned: bool,
    form: Any,
    former: Sequence[Collection[str]],
) -> str:
    """The rest of a sentence; empty where nothing is in the way."""
    if not target.exists():
        return ""
    if target.is_dir() != new.is_dir():
        there, other = ("a folder", "a file") if target.is_dir() else ("a file", "a folder")
        return f"is {there}, and what is saved there is {other}; choose another name"
    if not (target.is_dir() or target.is_file()):
        return "is no ordinary file; choose another name"
    if owned:
        return ""
    return _folder_obstacle(target, new, own, note) if new.is_dir() else _file_obstacle(target, new, form, former)


def _file_obstacle(target: Path, new: Path, form: Any, former: Sequence[Collection[str]]) -> str:
    old, ours = form_of(target), form_of(new)
    if old is None:
        return ""
    there = "is there already and holds"
    if ours is None or not ours.could_replace(old, former):
        return f"{there} something else than what is saved ({old.words}); choose another name"
    if form is not None and not all(fits(one, form) for one in _contents(target)):
        return f"{there} more or something else than what is saved; choose another name"
    return ""


def _folder_obstacle(target: Path, new: Path, own: Sequence[str], note: str) -> str:
    files = [file for file in sorted(target.rglob("*")) if not file.is_dir() or file.is_symlink()]
    if files and note and not (target / note).is_file():
        return f"is there already and holds something else (it has no {note}); choose another folder"
    for file in files:
        inside = file.relative_to(target)
        if not (new / inside).is_file() and not any(fnmatch.fnmatch(file.name, pattern) for pattern in own):
            return f"holds a file that is not of this kind ({inside}) and would be lost; choose another folder"
    return ""


def form_of(file: Path) -> FileForm | None:
    """The form of a file; None where it is empty.

    Raises:
        OSError: it can't be read.
    """
    with open(file, "rb") as opened:
        start = opened.read(64)
    if not start.strip():
        return None
    for magic, words in MAGIC.items():
        if start.startswith(magic):
            return FileForm(words, _columns(file) if words == "Parquet" else frozenset())
    if file.suffix.lower() in (".csv", ".tsv"):
        return FileForm("a table", _first_line(file))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        return FileForm("safetensors")
    if start.lstrip()[:1] not in (b"{", b"["):
        return FileForm("other bytes" if b"\0" in start else "text")
    return _json_form(file)


def _first_line(file: Path) -> frozenset[str]:
    """The names in the first line of a table whose delimiter its ending names."""
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        line = opened.readline(LARGEST).rstrip("\r\n")
    return frozenset(line.split("\t" if file.suffix.lower() == ".tsv" else ","))


def _json_form(file: Path) -> FileForm:
    contents = _contents(file)
    first = next(contents, None)
    if isinstance(first, list):
        return FileForm("a list of JSON", _keys(first))
    if not isinstance(first, dict):
        return FileForm("text")
    keys = set(first)
    for one in contents:
        if not isinstance(one, dict):
            return FileForm("text")
        keys.update(one)
    return FileForm("JSON", frozenset(keys))


def _contents(file: Path) -> Iterator[Any]:
    """The content of a JSON file, or of each line that is not blank; None for what is no JSON.

    Of a file that is too large to be read whole, lines are read alone.
    """
    whole = _parsed(file.read_bytes()) if file.stat().st_size <= LARGEST else None
    if whole is not None:
        yield whole
        return
    with open(file, "rb") as opened:
        while line := opened.readline(LARGEST):
            if line.strip():
                content = _parsed(line)
                yield content
                if content is None:
                    return


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _keys(rows: list[Any]) -> frozenset[str]:
    """The keys of all objects in a list."""
    return frozenset(key for row in rows if isinstance(row, dict) for key in row)


def _columns(file: Path) -> frozenset[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return frozenset(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return frozenset()
