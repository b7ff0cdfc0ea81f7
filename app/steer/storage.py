"""Edits as a file: saving and loading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st
from shared import dictionaries, edits

from workbench.core.forms import parse_json
from workbench.core.text import plain
from workbench.dictionaries import Dictionary
from workbench.interventions.saved import File, from_json, to_json
from workbench.model import EditError

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind
    from workbench.model import LanguageModel


def show(model: LanguageModel, interventions: Sequence[InterventionKind]) -> None:
    """Draw a button that saves the edits, and a box that loads a file of edits."""
    with st.popover("Save or load", icon=":material/save:", width="stretch"):
        if interventions:
            st.download_button(
                "Save these edits",
                to_json(model, interventions),
                "edits.json",
                "application/json",
                icon=":material/download:",
                on_click="ignore",
            )
        turn = st.session_state.setdefault("uploads", 0)
        st.file_uploader(
            "Load edits", "json", key=f"upload-{turn}", max_upload_size=20, on_change=_load, args=(model, turn)
        )
        st.caption("A file fits the model that it was saved with.")


def show_trouble() -> None:
    """Draw why the last file can't be loaded, until another file is."""
    trouble = st.session_state.get("trouble with file")
    if trouble:
        st.error(plain(trouble), icon=":material/error:")


def read(model: LanguageModel, data: bytes) -> list[InterventionKind]:
    """The edits in a file.

    Raises:
        EditError: the file does not hold interventions; other errors as in `from_json`.
    """
    try:
        return from_json(model, data.decode(), _needed(model, data.decode()))
    except (UnicodeDecodeError, TypeError) as error:
        raise EditError("This is not a file of interventions.") from error


def _needed(model: LanguageModel, text: str) -> list[Dictionary]:
    """The trained dictionaries that a file names; empty for a damaged file, about which `from_json` raises."""
    try:
        saved = parse_json(text, File, EditError, "This is not a file of interventions")
    except EditError:
        return []
    names = [one["name"] for one in saved.get("dictionaries", ())]
    return [dictionaries.load(model, dictionaries.called(model, name)) for name in names]


def _load(model: LanguageModel, turn: int) -> None:
    file = st.session_state[f"upload-{turn}"]
    st.session_state["trouble with file"] = None
    if file is None:
        return
    st.session_state["uploads"] = turn + 1  # an empty box for the next file
    try:
        edits.set_rows(read(model, file.getvalue()))
    except (ValueError, KeyError) as error:
        st.session_state["trouble with file"] = str(error)
