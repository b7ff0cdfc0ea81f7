"""How far long work is, told to whoever waits for it."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with a share from 0 to 1 and a word on what is being done."""


class SpokenProgress:
    """Progress in words on standard error, each once."""

    def __init__(self) -> None:
        self.said = ""

    def __call__(self, share: float, what: str) -> None:
        if what != self.said:
            print(f"{share:4.0%}  {what}", file=sys.stderr, flush=True)
            self.said = what
