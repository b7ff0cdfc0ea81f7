"""Compare: the fidelity of two dictionaries, side by side."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import corpora, dictionaries, session
from shared.dictionaries import Known, several
from shared.waiting import one_sentence

from compare import fidelity
from compare.fidelity import FidelityRequest

if TYPE_CHECKING:
    from workbench.model import LanguageModel


def show() -> None:
    """Draw the settings, and the measurement that they ask for."""
    model = session.current_model()
    offered = {one.name: one for one in dictionaries.fitting(model)}
    if len(offered) < 2:
        st.info("Two dictionaries for this model are needed. Train one on the page Train.", icon=":material/info:")
        return
    request, wanted = _ask(model, offered)
    with one_sentence():
        if wanted:
            fidelity.begin(model, request)
        if len(request.names) < 2:
            st.caption("Choose two different dictionaries.")
        else:
            fidelity.show(request)


def _ask(model: LanguageModel, offered: dict[str, Known]) -> tuple[FidelityRequest, bool]:
    """The widgets' request, and whether the button was pressed."""
    names = list(offered)
    for key, first in zip(("compared first", "compared second"), _first_pair(list(offered.values())), strict=True):
        if st.session_state.get(key) not in offered:
            st.session_state[key] = first

    def titled(name: str) -> str:
        return f"{offered[name].title} · {several(offered[name].reads)}"

    left, right = st.columns(2)
    one = left.selectbox("First", names, key="compared first", format_func=titled, persist_state="session")
    two = right.selectbox("Second", names, key="compared second", format_func=titled, persist_state="session")
    texts, count, button = st.columns([3, 2, 1.2], vertical_alignment="bottom")
    corpus = corpora.choose("compared corpus", texts)
    tokens = count.number_input(
        "Tokens",
        256,
        None,
        8192,
        1024,
        key="compared tokens",
        persist_state="session",
        help="More tokens give narrower intervals and take longer. Use texts that neither dictionary was trained on.",
    )
    wanted = button.button(
        "Measure", type="primary", icon=":material/balance:", width="stretch", key="measure", disabled=one == two
    )
    chosen = dict.fromkeys((one, two))
    request = FidelityRequest(
        st.session_state["source"],
        tuple(chosen),
        tuple(offered[name].folder for name in chosen),
        corpus,
        int(tokens),
        repr([caching.as_placed(model), *(offered[name].stamp for name in chosen)]),
    )
    return request, wanted


def _first_pair(offered: list[Known]) -> tuple[str, str]:
    """The names of the first two of one kind and place, else of one place, else of all."""
    pairs = list(itertools.combinations(offered, 2))
    alike = [pair for pair in pairs if pair[0].where == pair[1].where]
    same = [pair for pair in alike if pair[0].kind == pair[1].kind]
    one, other = (same or alike or pairs)[0]
    return one.name, other.name


if __name__ == "__main__":
    show()
