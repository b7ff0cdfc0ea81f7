"""What keeps a library from writing, in one sentence: the path, the reason, and the space that a full disk has."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from workbench.core.errors import WorkbenchError

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILURES = (OSError, SafetensorError, sqlite3.Error)
"""How libraries say that something can't be written."""
IN_RUST = re.compile(r"\(os error \d+\)$")
"""How a message of Rust ends that is about the disk; the library of tokenizers raises it as a plain `Exception`."""


class FileError(WorkbenchError):
    """A file or a folder that can't be written."""


@contextlib.contextmanager
def explained(target: Path, error: type[WorkbenchError] = FileError) -> Iterator[None]:
    """A block that writes; what keeps it from that is raised as one sentence of the given kind, with the path."""
    try:
        yield
    except Exception as wrong:
        if isinstance(wrong, FAILURES) or (type(wrong) is Exception and IN_RUST.search(str(wrong))):
            raise error(f"{target} can't be written: {_reason(wrong, target)}.") from wrong
        raise


def _reason(wrong: Exception, target: Path) -> str:
    """What kept a library from writing; for a full disk, also how much room it has."""
    words = (getattr(wrong, "strerror", None) or str(wrong) or type(wrong).__name__).strip().splitlines()[0]
    full = getattr(wrong, "errno", None) in FULL or "No space left" in words or "disk is full" in words
    if not full:
        return words.rstrip(". ")
    for place in Path(target).absolute().parents:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(place).free
            return f"the disk is full, {free / 1e6:,.1f} MB are free at {place}"
    return "the disk is full"
