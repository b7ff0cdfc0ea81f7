"""Long work on threads of its own: jobs that a page waits for, and tasks that go on while people do other things."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
BEHIND = 5
"""By how much the priority of tasks is below that of pages."""
Tell = Callable[[float, str], None]
"""Told the share done and what is being done."""


class Stopped(Exception):
    """Long work that nobody waits for any more."""


class Job(Generic[Result]):
    """Long work on its own thread, with how far it is."""

    def __init__(self, work: Callable[..., Result]):
        self.share, self.what, self.waiting = 0.0, "", 0
        self.begun = self._told = time.monotonic()
        self._work: Any = work
        self._result, self._error = None, None
        self._stop, self._over = False, threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._over.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a result."""
        return self.done and self._error is not None

    @property
    def seconds_left(self) -> float | None:
        """An estimate, once there is something to go by."""
        worked = self._told - self.begun
        if self.share <= 0 or worked < 1:
            return None
        return max(0.0, worked * (1 - self.share) / self.share - (time.monotonic() - self._told))

    def wait(self, seconds: float) -> None:
        """Return when it is done, or after this time."""
        self._over.wait(seconds)

    def result(self) -> Result:
        """What came of it; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def stop(self) -> None:
        """End it, unless another session waits for it."""
        self._stop = self.waiting == 0

    def _tell(self, share: float, what: str) -> None:
        self.share, self.what, self._told = share, what, time.monotonic()
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
    """Long work that goes on whoever watches, and that comes to an orderly end when it is stopped.

    Its thread steps back behind the pages' where the system allows that.

    Args:
        work: is given `tell`, and `cancelled`, which it asks now and then.
        name: what it is, for people.
        about: what it was asked to do.
    """

    def __init__(self, work: Callable[[Tell, Callable[[], bool]], Result], name: str = "", about: Any = None):
        self.name, self.about = name, about
        super().__init__(work)

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked it to end."""
        return self._stop

    def stop(self) -> None:
        """Ask it to end, for everybody."""
        self._stop = True

    def _tell(self, share: float, what: str) -> None:
        self.share, self.what, self._told = share, what, time.monotonic()

    def _do(self) -> Any:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                thread = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND)
        return self._work(self._tell, lambda: self._stop)
