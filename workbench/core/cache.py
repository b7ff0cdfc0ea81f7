"""The folder of what can be made again: converted models, decoded tables."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from workbench.core.failures import FileError

_TOLD: set[str] = set()
"""Reasons that were logged."""


def cache_folder() -> Path:
    """Where converted models and decoded tables are kept: `$WORKBENCH_CACHE`, or `workbench` in the user's cache."""
    if os.environ.get("WORKBENCH_CACHE"):
        return Path(os.environ["WORKBENCH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


@contextlib.contextmanager
def optional(file: Path) -> Iterator[None]:
    """A block that keeps in the cache what can be made again: where that can't be written, a warning says so once."""
    try:
        yield
    except FileError as error:
        reason = str(error).removeprefix(str(file))
        if reason not in _TOLD:
            _TOLD.add(reason)
            logging.getLogger("workbench").warning("%s It is made anew each time.", error)
