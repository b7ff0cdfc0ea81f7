"""Inspect: read a text and show which features are active on each of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, session
from shared.dictionaries import Known, several
from shared.sample import sample_text
from shared.waiting import one_sentence

from read import firing
from workbench.core.text import plain
from workbench.measures.firing import active_features

if TYPE_CHECKING:
    from workbench.model import LanguageModel

TEXT = "The dog ran to the river, and the old man told his children the story of the war."


def show() -> None:
    """Draw the settings and the text that was read last."""
    model = session.current_model()
    offered = {one.name: one for one in dictionaries.fitting(model)}
    if not offered:
        st.info(
            "There is no dictionary for this model yet. Train one on the page Train, or type a folder on Browse.",
            icon=":material/info:",
        )
        return
    _prepare(model, offered)
    text = st.text_area("Text", key="inspected", height=100, persist_state="session")
    which, count, button = st.columns([5, 2, 1.3], vertical_alignment="bottom")
    names = which.multiselect(
        "Dictionaries",
        list(offered),
        format_func=lambda name: f"{offered[name].title} · {several(offered[name].reads)}",
        key="inspected with",
        persist_state="session",
    )
    top = count.slider("Features per token, at most", 1, 30, 8, key="inspected top", persist_state="session")
    wanted = button.button("Read", type="primary", icon=":material/visibility:", width="stretch", key="read now")
    settings = (st.session_state["source"], text, tuple(names), top)
    reading = st.session_state.get("reading")
    if not names:
        st.caption("Choose at least one dictionary.")
    elif wanted or reading is None:
        with one_sentence(), st.spinner("The model is reading …"):
            loaded = [dictionaries.load(model, offered[name]) for name in names]
            reading = firing.Reading(*settings, active_features(model, loaded, text, top))
            st.session_state["reading"] = reading
    if reading is not None:
        _show_reading(model, reading, offered, changed=reading.settings != settings)


def _prepare(model: LanguageModel, offered: dict[str, Known]) -> None:
    """Choose a text and dictionaries where the session has none that fit the model."""
    if st.session_state.get("inspected", TEXT) == TEXT:
        st.session_state["inspected"] = sample_text(model, TEXT)
    kept = [name for name in st.session_state.get("inspected with", []) if name in offered]
    browsed = st.session_state.get("dictionary")
    indexed = [name for name, one in offered.items() if one.indexed]
    first = browsed if browsed in offered else [*indexed, *offered][0]
    st.session_state["inspected with"] = kept or [first]


def _show_reading(model: LanguageModel, reading: firing.Reading, offered: dict[str, Known], *, changed: bool) -> None:
    if changed:
        st.caption(":material/info: The settings have changed since this text was read; press Read to read it again.")
    if set(reading.names) <= set(offered):
        with one_sentence():
            firing.show(model, reading)
    else:
        st.caption(plain("A dictionary that this text was read with is no longer there."))


if __name__ == "__main__":
    show()
