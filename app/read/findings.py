"""What matters for an answer: ranked findings, each tested by taking it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background, dictionaries, snippets

from read import script
from read.reading import Cell
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.findings import Scan

SOON = 1.0
"""Seconds to wait before the page shows progress."""
OUT, NOT = ":green[:material/check_circle:]", ":gray[:material/do_not_disturb_on:]"


def show(cell: Cell) -> None:
    """Draw the button that looks for what matters for the answer at the open position, and what it found."""
    st.subheader("What matters for this answer?", anchor=False)
    key = ("scan", *cell.key, str(cell.position))
    about, button = st.columns([5, 2], vertical_alignment="center")
    about.caption(
        plain(
            f"Heads, neurons, latents, layers and tokens that {visible(cell.answer_text)} after "
            f"{visible(cell.token)} ({cell.position}) depends on, each taken out beside random ones of its kind."
        )
    )
    if button.button("Look for it", icon=":material/troubleshoot:", key="scan now", width="stretch"):
        _begin(cell, key)
    task = background.finished(key, "Stopped before anything was found.")
    if task is not None and not task.stopping:
        _result(cell, task.result())


def _begin(cell: Cell, key: tuple[str, ...]) -> None:
    """Start to look, unless it goes on or has ended with a result."""
    going = caching.task(key)
    if going is not None and not going.failed and not going.stopping:
        return
    model, text = cell.model, cell.text
    known = dictionaries.fitting(model)
    loaded = [dictionaries.load(model, one) for one in known]
    indexes = [index for one in known if (index := dictionaries.usable_index(model, one)) is not None]

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Scan:
        import workbench as wb

        def on_progress(share: float, what: str) -> None:
            tell(share, what)
            if cancelled():
                raise caching.Stopped

        with model.intervening(text.interventions):
            ids = cell.reading.ids[: cell.position + 1]
            return wb.scan(model, ids, cell.answer, dictionaries=loaded, indexes=indexes, progress=on_progress)

    caching.begin(key, "Looking", work).wait(SOON)


def _result(cell: Cell, found: Scan) -> None:
    """Draw the findings, those that stand out first."""
    with st.container(border=True):
        for one in found:
            st.markdown(f"{OUT if one.test.stands_out else NOT} {plain(one.sentence)}")
        for note in found.notes:
            st.caption(plain(note))
    st.caption("A check stands where taking it out does more than random ones of its kind do.")
    snippets.show(script.scan(cell, [one.folder for one in dictionaries.fitting(cell.model)]))
