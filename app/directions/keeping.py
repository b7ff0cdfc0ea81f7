"""Keeping a direction: as an edit of Steer and Surgery, as a file, and among the dictionaries of Browse."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, edits, pages, places

from workbench.core.text import plain
from workbench.directions import Direction, DirectionError

if TYPE_CHECKING:
    import workbench as wb
    from workbench.model import LanguageModel

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


def show(model: LanguageModel, direction: Direction, edit: wb.Steer) -> None:
    """Draw the buttons that keep a direction."""
    st.subheader("Keep it", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input("Name", "my-direction", key="direction name", persist_state="session", width=220)
        keep = st.button("Add to Steer", icon=":material/tune:", key="direction to steer", disabled=not edit.amount)
        listed = st.button("Add to the dictionaries", icon=":material/library_add:", key="direction to browse")
        st.download_button(
            "As a file",
            _file(direction, name.strip()),
            f"{name.strip() if NAME.fullmatch(name.strip()) else 'direction'}.safetensors",
            icon=":material/download:",
            on_click="ignore",
            key="direction file",
        )
    if keep:
        edits.add(edit)
        st.success("It stands among the edits of Steer; Surgery bakes them into the weights.", icon=":material/check:")
        st.page_link(pages.script("steer"), label="Open Steer", icon=":material/tune:")
    if listed:
        folder = kept(model, direction, name.strip())
        st.success(plain(f"It is saved in {folder}, and stands in the lists of features."), icon=":material/check:")


def kept(model: LanguageModel, direction: Direction, name: str) -> Path:
    """The folder among the runs where a direction was saved as a dictionary of one feature.

    Raises:
        DirectionError: a name that is none, or that another dictionary has.
    """
    if not NAME.fullmatch(name):
        raise DirectionError("A name has letters, digits, - and _, and begins with a letter or digit.")
    folder = Path(places.allowed(dictionaries.runs_folder() / name))
    if folder.exists():
        raise DirectionError(f"{folder} is there already; choose another name.")
    dictionary = direction.dictionary
    dictionary.provenance |= {"model_name": model.name, "model_hash": model.hash, **direction.provenance}
    dictionary.save(folder)
    return folder


def _file(direction: Direction, name: str) -> bytes:
    """The content of a `.safetensors` file of the direction."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "direction.safetensors"
        called = name or "direction"
        Direction(direction.vectors, called, direction.model_name, dict(direction.provenance)).save(path)
        return path.read_bytes()
