"""What a saver may replace: what it could itself have written.

A file takes the place of a file, a folder that of a folder. A file must have the same form as the new one: JSON, or
lines of JSON, with the same keys; Parquet and CSV with the same columns; another format with the same first bytes. A
folder must hold only files that the new one has too or that the saver names. What is empty may always be replaced.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError

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

    def could_replace(self, old: FileForm) -> bool:
        """Whether a saver of this form could have written `old`: at most a quarter of its parts are unknown here.

        An older version of a saver may have had other names for some.
        """
        return self.words == old.words and 4 * len(old.parts - self.parts) <= len(old.parts)


def check_place(
    target: Path,
    new: Path,
    error: type[WorkbenchError],
    *,
    own: Sequence[str] = (),
    note: str = "",
    owned: bool = False,
) -> None:
    """Check that `new`, which was written, may take the place of `target`; arguments as in `files.replacing`.

    Raises:
        WorkbenchError: of the given kind: there is something else.
    """
    if wrong := _obstacle(target, new, own, note, owned):
        raise error(f"{target} {wrong}.")


def _obstacle(target: Path, new: Path, own: Sequence[str], note: str, owned: bool) -> str:
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
    return _folder_obstacle(target, new, own, note) if new.is_dir() else _file_obstacle(target, new)


def _file_obstacle(target: Path, new: Path) -> str:
    old, ours = form_of(target), form_of(new)
    if old is None or (ours is not None and ours.could_replace(old)):
        return ""
    return f"is there already and holds something else than what is saved ({old.words}); choose another name"


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
    if file.stat().st_size <= LARGEST:
        content = _parsed(file.read_bytes())
        if isinstance(content, dict):
            return FileForm("JSON", frozenset(content))
        if isinstance(content, list):
            return FileForm("a list of JSON", _keys(content[0] if content else None))
    with open(file, "rb") as opened:
        line = _parsed(opened.readline(LARGEST))
    return FileForm("JSON", _keys(line)) if isinstance(line, dict) else FileForm("text")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _keys(content: Any) -> frozenset[str]:
    return frozenset(content) if isinstance(content, dict) else frozenset()


def _columns(file: Path) -> frozenset[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return frozenset(pq.read_schema(file).names)
    except (pa.ArrowException, OSError):
        return frozenset()
