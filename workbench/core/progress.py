"""How far long work is, told to whoever waits for it."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with a share from 0 to 1 and a word on what is being done."""


def time_left(seconds: float) -> str:
    """A time in words, in seconds, minutes or hours: "40 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def remembering(cancel: Callable[[], bool] | None) -> Callable[[], bool]:
    """`cancel` with a memory: once it has returned True it is True for ever, and is not asked again.

    Args:
        cancel: asks whether to stop; None never stops.
    """
    stopped = False

    def stops() -> bool:
        nonlocal stopped
        stopped = stopped or (cancel is not None and bool(cancel()))
        return stopped

    return stops


class SpokenProgress:
    """Progress in words on standard error, each once."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, share: float, what: str) -> None:
        if what != self.last:
            print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)
            self.last = what
