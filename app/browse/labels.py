"""Labels, notes and stars as a file: saving and loading."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.index import FeatureIndex

ENDINGS = {"csv": "text/csv", "json": "application/json"}
TURN, TROUBLE = "uploads of labels", "trouble with labels"


def show(index: FeatureIndex) -> None:
    """Draw buttons that save the labels of an index, and a box that loads a file of labels."""
    with st.popover("Labels as a file", icon=":material/sell:"):
        for ending, mime in ENDINGS.items():
            st.download_button(
                f"Save labels as {ending.upper()}",
                partial(written, index, ending),
                f"labels.{ending}",
                mime,
                icon=":material/download:",
                on_click="ignore",
            )
        turn = st.session_state.setdefault(TURN, 0)
        st.file_uploader(
            "Load labels",
            ["csv", "tsv", "json"],
            key=f"labels-{turn}",
            max_upload_size=20,
            on_change=_load,
            args=(index, turn),
        )
        st.caption("A table needs the column “feature”, with numbers, and any of “label”, “note” and “starred”.")
    if trouble := st.session_state.get(TROUBLE):
        st.error(plain(trouble), icon=":material/error:")


def written(index: FeatureIndex, ending: str) -> bytes:
    """The labels of an index as a file with this ending."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"labels.{ending}"
        index.export_labels(file)
        return file.read_bytes()


def read(index: FeatureIndex, name: str, data: bytes) -> None:
    """Add the labels of a file that was sent.

    Raises:
        FeatureIndexError: as in `import_labels`; the sentence has the name that the file was sent under.
    """
    from workbench.index import FeatureIndexError

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"labels{Path(name).suffix}"
        file.write_bytes(data)
        try:
            index.import_labels(file)
        except FeatureIndexError as error:
            raise FeatureIndexError(str(error).replace(str(file), name)) from error


def _load(index: FeatureIndex, turn: int) -> None:
    file = st.session_state[f"labels-{turn}"]
    st.session_state[TROUBLE] = None
    if file is None:
        return
    st.session_state[TURN] = turn + 1  # an empty box for the next file
    try:
        read(index, file.name, file.getvalue())
    except (ValueError, OSError) as error:
        st.session_state[TROUBLE] = str(error)
