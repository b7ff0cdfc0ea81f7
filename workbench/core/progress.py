"""How far long work is, told to whoever waits for it.

A public function takes `progress`: a function, which is called; None, for a bar where a person waits; or False, for
nothing. `checked` opens the bar (`reporting`), so that no function does. A bar is drawn in the main thread, where
standard error is a terminal or a notebook, once the work has taken longer than a second, and for the outermost call
alone. `TQDM_DISABLE=1` in the environment turns all bars off.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

Tell = Callable[[float, str], None]
"""Is told a share from 0 to 1 and a word on what is being done."""
Progress = Tell | Literal[False]
"""What a caller gives for `progress`, beside None."""
PATIENCE = 1.0
"""Seconds that work takes before a bar is drawn."""
LAYOUT = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
"""Of a bar, as tqdm writes it."""
_reporting: ContextVar[bool] = ContextVar("reporting", default=False)
"""Whether a call around this one decides what is told."""


def silence(share: float, what: str) -> None:
    """Progress that is told to no one."""


class Bar:
    """Progress as a bar of tqdm, drawn once the work has taken longer than `PATIENCE`."""

    def __init__(self) -> None:
        self._began = time.time()
        self._bar: Any = None
        self._closed = False

    def __call__(self, share: float, what: str) -> None:
        """Draw the share; behind `close` nothing."""
        if self._closed or (self._bar is None and time.time() - self._began < PATIENCE):
            return
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start_t = self._began
        words = "".join(letter if letter.isprintable() else " " for letter in what)
        self._bar.set_description_str(words, refresh=False)
        self._bar.update(min(share, 1.0) - self._bar.n)

    def close(self, *, done: bool) -> None:
        """End the bar; what is `done` ends at 100%."""
        self._closed = True
        if self._bar is not None:
            if done:
                self._bar.update(1.0 - self._bar.n)
            self._bar.close()


def _new_bar() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where a notebook has no widgets, the bar is written
        from tqdm.auto import tqdm
    # tqdm itself reads the variable once, when it is imported
    disabled = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(total=1.0, bar_format=LAYOUT, file=sys.stderr, miniters=0, smoothing=0, disable=disabled)


def _is_watched() -> bool:
    """Whether standard error is a terminal or a notebook, and this the main thread."""
    if threading.current_thread() is not threading.main_thread() or sys.stderr is None:
        return False
    return type(sys.stderr).__module__.startswith("ipykernel") or sys.stderr.isatty()


@contextmanager
def reporting(progress: Progress | None) -> Iterator[Tell | None]:
    """What a call tells its progress to; a bar ends with the block.

    Args:
        progress: the caller's: a function, False, or None. None stays None where no person waits or a call around this
            one decides what is told.
    """
    outermost, token = not _reporting.get(), _reporting.set(True)
    bar = Bar() if progress is None and outermost and _is_watched() else None
    done = False
    try:
        yield silence if progress is False else (bar or progress)
        done = True
    finally:
        _reporting.reset(token)
        if bar is not None:
            bar.close(done=done)


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
