"""Labels by rule: the button that finds them, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background, dictionaries, places
from shared.dictionaries import Known
from shared.waiting import one_sentence

if TYPE_CHECKING:
    from workbench.index import FeatureIndex
    from workbench.model import LanguageModel

STOPPED = "Finding labels was stopped; nothing was changed."


def show(model: LanguageModel, one: Known) -> None:
    """Draw the button, the progress of the work, or the number of labels; nothing for an export."""
    if one.exported:
        return
    key = ("labels", one.folder)
    if background.goes_on(key):
        return
    background.finished(key, STOPPED)
    with one_sentence():
        index = dictionaries.open_index(model, one)
        if index is None:
            return
        count = len(index.labels_by("rule"))
        button = "Find labels by rule anew" if count else "Find labels by rule"
        if st.button(
            button,
            icon=":material/label:",
            key="find labels",
            help="Rules such as “the word dog” or “before a number”, chosen on half of the index's texts and scored on "
            "the other half. What you write yourself stands above them.",
        ):
            places.allowed(index.path)
            caching.begin(key, f"Finding labels of {one.title}", _work(index))
            st.rerun()
        if count:
            st.caption(f"{count:,} {one.noun}s have a label by rule.")


def _work(index: FeatureIndex) -> Callable[..., None]:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> None:
        index.explain(progress=tell, cancel=cancelled)

    return work
