"""Which texts to read: a corpus that comes with Workbench, or a file or folder."""

from __future__ import annotations

import streamlit as st

FIRST = "stories"


def choose(key: str, place: object = None, disabled: bool = False) -> str:
    """The chooser; what `Corpus.load` takes."""
    known: list[str] = st.session_state.setdefault("known corpora", _bundled())
    if (chosen := st.session_state.get(key)) and chosen not in known:
        known.append(chosen)
    chosen = (place or st).selectbox(
        "Texts",
        known,
        key=key,
        accept_new_options=True,
        persist_state="session",
        disabled=disabled,
        help="Texts that come with Workbench, or type the path of a .txt, .jsonl or .parquet file, or of a folder.",
    )
    return (chosen or FIRST).strip()


def _bundled() -> list[str]:
    from workbench.corpus.reading import bundled

    return bundled() or [FIRST]
