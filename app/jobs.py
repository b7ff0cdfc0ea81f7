"""Long work on its own threads: jobs that a page waits for, and tasks that run beside the pages."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
BEHIND = 5
"""Increase of the niceness of tasks' threads over those of pages."""
Tell = Callable[[float, str], None]
"""A callback that takes the share done and a description of the current part."""


class Stopped(Exception):
    """Raised in work that was stopped because no session waits for it."""


class Job(Generic[Result]):
    """Long work on its own thread, with its progress."""

    def __init__(self, work: Callable[..., Result]):
        self.share, self.what, self.waiting = 0.0, "", 0
        self.begun = self._reported = time.monotonic()
        self._work: Any = work
        self._result, self._error = None, None
        self._stop, self._over = False, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether it has ended, with or without a result."""
        return self._over.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a result."""
        return self.done and self._error is not None

    @property
    def seconds_left(self) -> float | None:
        """The estimated remaining seconds; None before the first report, in the first second, and where the work goes
        on though they have passed."""
        worked = self._reported - self.begun
        if self.share <= 0 or worked < 1:
            return None
        left = worked * (1 - self.share) / self.share - (time.monotonic() - self._reported)
        return left if left >= 1 else None

    def wait(self, seconds: float) -> None:
        """Block until it is done, at most for this time."""
        self._over.wait(seconds)

    def result(self) -> Result:
        """The result of the work; raises the error that the work raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def stop(self) -> None:
        """Stop it, unless another session waits for it."""
        self._stop = self.waiting == 0

    def _tell(self, share: float, what: str) -> None:
        self.share, self.what, self._reported = share, what, time.monotonic()
        if self._stop:
            raise Stopped

    def _do(self) -> Result:
        return self._work(self._tell)

    def _run(self) -> None:
        try:
            self._result = self._do()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error
        self._work = None  # it may hold a model
        self._over.set()


class Task(Job[Result]):
    """Long work that runs whether or not a session waits, and that ends in order when it is stopped.

    Its thread has a lower priority than the pages' where the system allows it.

    Args:
        work: called with `tell` and `cancelled`; it returns early once `cancelled()` is True.
        name: the title of the work.
        about: its request, or where it leaves results on the way.
    """

    def __init__(self, work: Callable[[Tell, Callable[[], bool]], Result], name: str = "", about: Any = None):
        self.name, self.about = name, about
        super().__init__(work)

    @property
    def stopping(self) -> bool:
        """Whether a session has asked it to stop."""
        return self._stop

    def stop(self) -> None:
        """Ask it to stop, for all sessions."""
        self._stop = True

    def _tell(self, share: float, what: str) -> None:
        self.share, self.what, self._reported = share, what, time.monotonic()

    def _do(self) -> Any:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                thread = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND)
        return self._work(self._tell, lambda: self._stop)
