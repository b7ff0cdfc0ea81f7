"""A dictionary without a feature index: an explanation, and the button that builds the index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, dictionaries, places, session, snippets
from shared.dictionaries import Known
from shared.waiting import one_sentence

from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel

TOKENS = 100_000


def show(model: LanguageModel, one: Known) -> None:
    """Draw the explanation and the button."""
    st.markdown(f"**{plain(one.title)} has no index yet**, so its {one.noun}s can't be searched and have no examples.")
    st.caption(
        f"Building one runs the model once over some texts and records which {one.noun}s are active where. "
        "It can be stopped and resumed."
    )
    begin(model, one)


def begin(model: LanguageModel, one: Known) -> None:
    """Draw the settings and the button, or the progress of the building."""
    key = key_of(one)
    if background.goes_on(key):
        return
    background.show_failure(key)
    task = caching.task(key)
    if task is not None and task.stopping:
        st.info("Building was stopped. With the same settings it resumes where it stopped.", icon=":material/pause:")
    texts, count, button = st.columns([3, 2, 2], vertical_alignment="bottom")
    corpus = corpora.choose("index corpus", texts, first=[corpora.WALKS] if session.machine_of(model) else [])
    tokens = int(
        count.number_input(
            "Tokens",
            1000,
            None,
            TOKENS,
            10_000,
            key="index tokens",
            persist_state="session",
            help=f"More tokens give examples to rarer {one.noun}s. 100,000 take a few minutes.",
        )
    )
    if button.button("Build the index", type="primary", icon=":material/database:", key="build index"):
        with one_sentence():
            places.allowed(one.index_folder)
            caching.begin(key, f"Building the index of {one.title}", _work(model, one, corpus, tokens))
            st.rerun()
    snippets.show(_script(st.session_state["source"], one, corpus, tokens))


def key_of(one: Known) -> tuple[str, ...]:
    """The key of the task that builds a dictionary's index."""
    return ("index", one.folder)


def _work(model: LanguageModel, one: Known, corpus: str, tokens: int) -> Callable[..., Any]:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> None:
        import workbench as wb

        texts = corpora.load(model, corpus)
        dictionary = dictionaries.load(model, one)
        wb.build_index(model, dictionary, texts, one.index_folder, tokens=tokens, progress=tell, cancel=cancelled)

    return work


def _script(source: str, one: Known, corpus: str, tokens: int) -> str:
    """The index of a dictionary, from a corpus or from walks of the model's own state machine."""
    corpus_code = (
        'wb.synthetic.TokFSM(**model.about["machine"]).corpus()'
        if corpus == corpora.WALKS
        else f"wb.Corpus.load({corpus!r})"
    )
    own = one.index_folder == Path(one.folder) / "index"
    index = snippets.place(one.folder) + "/index" if own else str(one.index_folder)
    return snippets.opening(source) + (
        f"dictionary = wb.load_dictionary({snippets.place(one.folder)!r})\n"
        f"corpus = {corpus_code}\n"
        f"index = wb.build_index(model, dictionary, corpus, {index!r}, tokens={tokens})\n"
    )
