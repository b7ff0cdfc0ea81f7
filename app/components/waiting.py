"""Waiting for long work, and saying what went wrong in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import streamlit as st
from caching import Job, Stopped
from components.tokens import plain
from streamlit.delta_generator import DeltaGenerator

Result = TypeVar("Result")


@contextmanager
def one_sentence(place: Any = None) -> Iterator[None]:
    """Show what a user can mend as one sentence instead of a traceback, here or in another place.

    All errors of the package are `ValueError`s, except `HookPointError`, which is a `KeyError`.
    """
    try:
        yield
    except (ValueError, KeyError) as error:
        from workbench import HookPointError

        if isinstance(error, KeyError) and not isinstance(error, HookPointError):
            raise
        (place or st).error(plain(error), icon=":material/error:")


def wait_for(start: Callable[[], Job[Result]], what: str, *, may_stop: bool = False) -> Result:
    """The result of long work, with a bar and an estimate until it is there.

    Args:
        start: begins the work, or finds it if it has begun.
        what: what is being done, until the work says so itself.
        may_stop: offer to end it.

    Raises:
        Stopped: the user ended it.
    """
    name = f"stopped {what}"
    if st.session_state.get(name):
        raise Stopped
    place = st.empty()  # in every run, so that nothing below it moves
    job = start()
    if job.done:
        return job.result()
    job.waiting += 1
    try:
        with place.container():
            bar = st.empty()
            if may_stop:
                st.button("Stop", key=f"stop {what}", on_click=_stop, args=(job, name))
            while not job.done:
                _draw(bar, job, what)
                job.wait(0.1 if job.share == 0 else 0.4)
    finally:
        job.waiting -= 1
    place.empty()
    return job.result()


def begin_again(what: str) -> None:
    """Forget that this work was stopped."""
    st.session_state.pop(f"stopped {what}", None)


def _stop(job: Job, name: str) -> None:
    st.session_state[name] = True
    job.stop()


def _draw(bar: DeltaGenerator, job: Job, what: str) -> None:
    if job.share <= 0:
        bar.progress(0.0, text=f"{what} …")
        return
    left = job.seconds_left
    estimate = f", about {left:.0f} s left" if left is not None else ""
    bar.progress(min(job.share, 1.0), text=f"{job.what}{estimate}")
