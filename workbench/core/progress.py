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


class SpokenProgress:
    """Progress in words on standard error, each once."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, share: float, what: str) -> None:
        if what != self.said:
            print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)
            self.said = what
