"""The folder of what can be made again: converted models, decoded tables, tables of hook points.

What a computation alone makes again has a limit of size: the files that were used longest ago go first. Models, which
are downloaded, stay until a person empties the cache (`python -m workbench cache`, *Settings*).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core.checks import checked
from workbench.core.failures import FileError, explained

_TOLD: set[str] = set()
"""Reasons that were logged."""
LIMIT = 1000
"""Megabytes that the parts with a limit take together; `$WORKBENCH_CACHE_LIMIT` sets another number."""
_HEX = "[0-9a-f]" * 64


@dataclass(frozen=True)
class _Part:
    """A folder in the cache."""

    pattern: str
    """Of the names of its entries; nothing else in the folder is touched."""
    about: str
    limited: bool


_PARTS = {
    "models": _Part(_HEX, "models, downloaded and converted", False),
    "decodings": _Part("*-*-*-*.safetensors", "the tokens of all neurons, by model and setting", True),
    "hook_points": _Part(f"{_HEX}.json", "the hook points of configurations", True),
    "products": _Part(f"{_HEX}.json", "which library multiplies fastest on this machine", True),
}


@dataclass(frozen=True)
class CachePart:
    """What one part of the cache holds."""

    name: str
    about: str
    """What that is, in a few words."""
    entries: int
    size: int
    """Bytes."""
    limited: bool
    """Whether it counts towards `cache_limit`."""


def cache_folder() -> Path:
    """Where converted models and decoded tables are kept: `$WORKBENCH_CACHE`, or `workbench` in the user's cache."""
    if os.environ.get("WORKBENCH_CACHE"):
        return Path(os.environ["WORKBENCH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def cache_limit() -> int:
    """Bytes that the parts of the cache with a limit take together.

    Raises:
        FileError: `$WORKBENCH_CACHE_LIMIT` is no number of megabytes.
    """
    stated = os.environ.get("WORKBENCH_CACHE_LIMIT") or str(LIMIT)
    if not (stated.isascii() and stated.isdigit() and len(stated) <= 9):
        raise FileError(f"WORKBENCH_CACHE_LIMIT is a whole number of megabytes, not {stated[:40]!r}.")
    return int(stated) * 10**6


def cache_parts() -> list[CachePart]:
    """The parts of the cache, with what each holds now."""
    parts = []
    for name, part in _PARTS.items():
        entries = _entries(name)
        parts.append(CachePart(name, part.about, len(entries), sum(map(_size, entries)), part.limited))
    return parts


@checked(FileError)
def empty_cache(*names: str) -> int:
    """Empty the cache; models that are open stay so, and what is needed again is made again.

    Args:
        names: parts to empty; all where none is named.

    Returns:
        Bytes that were freed.

    Raises:
        FileError: there is no such part, or it can't be emptied.
    """
    if strange := next((name for name in names if name not in _PARTS), None):
        raise FileError(f"The cache has no part {strange[:40]!r}; it has {', '.join(_PARTS)}.")
    freed = 0
    for name in names or _PARTS:
        for entry in _entries(name):
            size = _size(entry)
            with explained(entry):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
            freed += size
    return freed


def in_use(file: Path) -> None:
    """Note that a file of the cache is used now, so that it is among the last to go."""
    with contextlib.suppress(OSError):  # a cache that can only be read loses nothing
        os.utime(file)


@contextlib.contextmanager
def optional(file: Path) -> Iterator[None]:
    """A block that keeps in the cache what can be made again: where that can't be written, a warning says so once.

    What exceeds the cache's limit then is removed, the new file last.
    """
    try:
        yield
        _trim(file)
    except FileError as error:
        reason = str(error).removeprefix(str(file))
        if reason not in _TOLD:
            _TOLD.add(reason)
            logging.getLogger("workbench").warning("%s It is made anew each time.", error)


def _trim(newest: Path) -> None:
    """Remove what exceeds the limit, but for one file."""
    left = cache_limit()
    with contextlib.suppress(OSError):  # another process removed it first
        left -= newest.stat().st_size
        files = [entry for name, part in _PARTS.items() if part.limited for entry in _entries(name) if entry != newest]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
            left -= file.stat().st_size
            if left < 0:
                file.unlink(missing_ok=True)


def _entries(name: str) -> list[Path]:
    """The entries of a part; links are none."""
    folder = cache_folder() / name
    return sorted(entry for entry in folder.glob(_PARTS[name].pattern) if not entry.is_symlink())


def _size(entry: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for file in entry.rglob("*") if entry.is_dir() else (entry,):
        with contextlib.suppress(OSError):  # another process removed it
            total += file.stat().st_size if file.is_file() else 0
    return total
