"""Waiting for long work with a progress bar, and errors as one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import streamlit as st
from caching import Job, Stopped

from workbench.core.text import plain

Result = TypeVar("Result")
ERROR = ":material/error:"
TOO_LITTLE = (
    "The memory of the device is too small for this; ask for less, or choose 16 bits or another device in the sidebar."
)


@contextmanager
def one_sentence(place: Any = None) -> Iterator[None]:
    """Draw an error that a user can mend as one sentence instead of a traceback, here or in another container.

    All errors of the package are `ValueError`s, except `HookPointError`, which is a `KeyError`.
    """
    try:
        yield
    except OSError as error:
        (place or st).error(
            plain(f"{error.filename or 'A file'} can't be used: {error.strerror or error}."), icon=ERROR
        )
    except (ValueError, KeyError) as error:
        from workbench.model import HookPointError

        if isinstance(error, KeyError) and not isinstance(error, HookPointError):
            raise
        (place or st).error(plain(error), icon=ERROR)
    except (RuntimeError, MemoryError) as error:
        from torch import OutOfMemoryError

        if not isinstance(error, MemoryError | OutOfMemoryError):
            raise
        (place or st).error(TOO_LITTLE, icon=ERROR)


def wait_for(start: Callable[[], Job[Result]], what: str, *, may_stop: bool = False) -> Result:
    """The result of long work; draws a bar with an estimate until the work is done.

    Args:
        start: returns the job, which it starts if need be.
        what: the description of the work until the job reports its own.
        may_stop: whether to draw a button that stops the work.

    Raises:
        Stopped: the user stopped the work.
    """
    name = f"stopped {what}"
    if was_stopped(what):
        raise Stopped
    place = st.empty()  # in every run, so that no element below it moves
    job = start()
    if job.done:
        return job.result()
    job.waiting += 1
    try:
        with place.container():
            bar = st.empty()
            if may_stop:
                st.button("Stop", key=f"stop {what}", on_click=_stop, args=(job, name))
            drawn = None
            while not job.done:
                state = _bar_state(job, what)
                if state != drawn:  # drawing takes processor time from the work
                    bar.progress(state[0], text=state[1])
                    drawn = state
                job.wait(0.1 if job.share == 0 else 0.4)
    finally:
        job.waiting -= 1
    place.empty()
    return job.result()


def was_stopped(what: str) -> bool:
    """Whether the user stopped this work."""
    return bool(st.session_state.get(f"stopped {what}"))


def begin_again(what: str) -> None:
    """Allow this work to start again after it was stopped."""
    st.session_state.pop(f"stopped {what}", None)


def time_left(seconds: float) -> str:
    """A number of seconds as text: 40 s, 12 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _stop(job: Job, name: str) -> None:
    st.session_state[name] = True
    job.stop()


def _bar_state(job: Job, what: str) -> tuple[float, str]:
    """The bar's share and its text."""
    if job.share <= 0:
        return 0.0, plain(f"{what} …")
    left = job.seconds_left
    estimate = f", about {time_left(left)} left" if left is not None else ""
    return min(job.share, 1.0), plain(f"{job.what}{estimate}")
