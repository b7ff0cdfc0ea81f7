"""The progress of long work beside a page that stays usable: only this part is redrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared.waiting import time_left

from workbench.core.text import plain

if TYPE_CHECKING:
    from jobs import Task

EVERY = 1.0
"""Seconds between two draws."""


def follow(key: tuple[str, ...], stop: str = "Stop") -> None:
    """Draw the bar of a task that goes on, with a button that stops it; redraw the whole page once it has ended."""

    @st.fragment(run_every=EVERY)
    def watch() -> None:
        task = caching.task(key)
        if task is None or task.done:
            st.rerun()
        bar, button = st.columns([6, 1], vertical_alignment="bottom")
        left = task.seconds_left
        text = task.what or f"{task.name}: starting"
        if left is not None and "left" not in text:
            text += f", about {time_left(left)} left"
        bar.progress(min(max(task.share, 0.0), 1.0), text=plain("Stopping …" if task.stopping else f"{text} …"))
        button.button(stop, key=f"stop {key}", icon=":material/stop:", on_click=task.stop, disabled=task.stopping)

    watch()


def goes_on(key: tuple[str, ...]) -> bool:
    """Draw the bar of a task that goes on; forget one that has its result, and redraw the page.

    Returns:
        Whether it goes on. False for a task that failed or was never begun.
    """
    task = caching.task(key)
    if task is not None and not task.done:
        follow(key)
        return True
    if task is not None and not task.failed:
        caching.forget(key)
        st.rerun()
    return False


def finished(key: tuple[str, ...] | None, stopped: str = "") -> Task[Any] | None:
    """The task of this key if it has a result; without one, draws the progress of the task or why it failed.

    Args:
        key: None for no task.
        stopped: the sentence for a task that was stopped before it had a result.
    """
    task = caching.task(key) if key else None
    if key is None or task is None:
        return None
    if not task.done:
        follow(key)
        return None
    if task.failed:
        if not show_failure(key) and stopped:
            st.info(stopped, icon=":material/pause:")
        return None
    return task


def show_failure(key: tuple[str, ...]) -> bool:
    """Draw in one sentence why a task failed; returns whether it did."""
    task = caching.task(key)
    if task is None or not task.failed or task.stopping:
        return False
    try:
        task.result()
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        st.error(plain(error), icon=":material/error:")
    return True
