"""Reading what another process may replace meanwhile: the old or the new, and no mix of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from workbench.core.errors import WorkbenchError

T = TypeVar("T")

ATTEMPTS = 20
"""How often something is read at most."""


def read_steadily(read: Callable[[], T], places: Sequence[Path], error: type[WorkbenchError]) -> T:
    """What a function returns that reads several files, all of them in one state.

    It is called again where another process replaced one of the places meanwhile, also if it raised an error then.

    Args:
        read: reads the files.
        places: a file or a folder for each thing that is replaced at one moment.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: the places did not stay the same for as long as it takes to read them.
    """
    for _ in range(ATTEMPTS):
        before = _state(places)
        try:
            content = read()
        except Exception:
            if _state(places) == before:
                raise
        else:
            if _state(places) == before:
                return content
    raise error(f"{places[0]} is replaced by another process again and again; read it when that has ended.")


def _state(places: Sequence[Path]) -> list[tuple[int, ...]]:
    """What changes when a place is replaced; of a folder, not what changes when a file is added to it."""
    states: list[tuple[int, ...]] = []
    for place in places:
        try:
            now = place.stat()
        except (OSError, ValueError):
            states.append(())
            continue
        inside = () if place.is_dir() else (now.st_size, now.st_mtime_ns)
        states.append((now.st_dev, now.st_ino, *inside))
    return states
