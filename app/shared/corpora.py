"""The chooser of texts: a corpus that comes with Workbench, or a file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import places, session

if TYPE_CHECKING:
    from workbench import Corpus
    from workbench.model import LanguageModel

FIRST, WALKS = "stories", "walks of its state machine"


def load(model: LanguageModel, name: str) -> Corpus:
    """The corpus of this name or path; for `WALKS`, walks of the model's state machine."""
    machine = session.machine_of(model)
    return machine.corpus() if machine and name == WALKS else opened(name)


def opened(name: str) -> Corpus:
    """The corpus of this name or path; raises an error if there is none, or a visitor may not read there."""
    import workbench as wb

    return wb.Corpus.load(places.allowed(name))


def choose(
    key: str, place: Any = None, disabled: bool = False, *, first: Sequence[str] = (), title: str = "Texts"
) -> str:
    """Draw the chooser, with `first` before all others; returns a name or path for `load` or `opened`."""
    known: list[str] = [*first, *st.session_state.setdefault("known corpora", _bundled())]
    if (chosen := st.session_state.get(key)) and chosen not in known:
        st.session_state["known corpora"].append(chosen)
        known.append(chosen)
    chosen = (place or st).selectbox(
        title,
        known,
        key=key,
        accept_new_options=True,
        persist_state="session",
        disabled=disabled,
        help="Texts that come with Workbench, or type the path of a .txt, .jsonl, .csv, .tsv or .parquet file, or of a "
        "folder. The texts are the column “text”, or the only column with sentences.",
    )
    return (chosen or FIRST).strip()


def _bundled() -> list[str]:
    from workbench.corpus.reading import bundled

    return bundled() or [FIRST]
