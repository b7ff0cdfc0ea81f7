"""The remarks on a latent: a label, a note, a star. Each is written to disk as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import streamlit as st
from shared import places

from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.index import FeatureIndex


class Named(Protocol):
    """A dictionary as the editor needs it."""

    @property
    def name(self) -> str: ...

    @property
    def noun(self) -> str: ...


@st.fragment
def show(one: Named, index: FeatureIndex, latent: int) -> None:
    """Draw the editor; typing redraws only this part of the page."""
    remark = index.remarks().get(latent)
    start = {"label": remark.label if remark else "", "note": remark.note if remark else ""}
    starred = bool(remark and remark.starred)
    keys = {name: f"{name} of {one.name}:{latent}" for name in (*start, "star")}
    for name, text in start.items():
        if st.session_state.get(keys[name], "") != text:
            st.session_state[keys[name]] = text  # another session wrote it
    if st.session_state.get(keys["star"], False) != starred:
        st.session_state[keys["star"]] = starred
    label, note, star = st.columns([3, 5, 1.2], vertical_alignment="bottom")
    for place, name, hint in (
        (label, "label", f"what this {one.noun} is about"),
        (note, "note", "anything worth knowing"),
    ):
        place.text_input(
            name.title(),
            key=keys[name],
            placeholder=hint,
            live="300ms",
            on_change=_save,
            args=(index, latent, name, keys[name]),
            icon=":material/sell:" if name == "label" else ":material/notes:",
        )
    star.toggle("Star", key=keys["star"], on_change=_save, args=(index, latent, "star", keys["star"]))
    if trouble := st.session_state.pop("trouble with remark", ""):
        st.error(plain(trouble), icon=":material/error:")


def _save(index: FeatureIndex, latent: int, name: str, key: str) -> None:
    """Write one field to the index."""
    try:
        places.allowed(index.path)
        {"label": index.label, "note": index.note, "star": index.star}[name](latent, st.session_state[key])
    except ValueError as error:
        st.session_state["trouble with remark"] = str(error)
