"""Paths of files and folders, checked before the file system sees them."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

LONGEST_NAME = 255
"""Bytes of one name in a path; file systems allow no more."""
LONGEST_PATH = 4095
"""Bytes of a path; Linux allows no more."""


def path_fault(path: str | Path) -> str:
    """Why a path can't be one, as "a path … not '…'" goes on; empty where it can."""
    text = os.fspath(path)
    if not text:
        return "that is not empty"
    if "\0" in text:
        return "without a NUL character"
    if has_halves(text):
        return "without halves of characters (lone surrogates)"
    if len(text.encode()) > LONGEST_PATH or any(len(name.encode()) > LONGEST_NAME for name in text.split(os.sep)):
        return f"with names of at most {LONGEST_NAME} bytes"
    return ""


def has_halves(text: str) -> bool:
    """Whether a text holds halves of characters (lone surrogates), which UTF-8 can't hold."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def as_path(path: str | Path, error: type[WorkbenchError]) -> Path:
    """A path that a file system can hold; raises the room's own error for another."""
    fault = path_fault(path) if isinstance(path, str | Path) else "as a text or a Path"
    if fault:
        raise error(f"Give a path {fault}, not {shown(path)}.")
    return Path(path)
