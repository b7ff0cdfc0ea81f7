"""A box that adds an edit: it takes a feature's id, or a word to search among neurons and latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import dictionaries, edits
from shared.waiting import one_sentence

import workbench as wb
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.model import LanguageModel

NEURONS, LATENTS = 6, 3
"""The numbers of neurons, and of latents of each dictionary, that are offered for a word."""


def show(model: LanguageModel, offers: Any) -> None:
    """Draw the box, and the features that fit its word in the container `offers`."""
    text = st.text_input(
        "Add a feature",
        key="adder",
        placeholder=f"a word (dog) or an id (neurons.{model.network.n_layers - 1}.post:8)",
        icon=":material/add:",
        persist_state="session",
    ).strip()
    if not text:
        return
    if ":" in text:
        with one_sentence():
            edits.add_feature(model, str(wb.Feature.parse(text)))
            st.session_state["clear adder"] = True
            st.rerun()
        return
    with offers, one_sentence():
        _neurons(model, text)
        _latents(model, text)


def clear() -> None:
    """Empty the box after its feature was added; call this before `show`."""
    if st.session_state.pop("clear adder", False):
        st.session_state["adder"] = ""


def _neurons(model: LanguageModel, text: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Neurons that promote it most:", width="content")
        for feature, _ in caching.strongest(model, f" {text}", "down", "unit", NEURONS):
            tokens = caching.reading(model, str(feature)).promoted[:3]
            words = ", ".join(token.strip() for token, _, _ in tokens)
            _offer(model, str(feature), f"{feature.dictionary.removeprefix('neurons.')}:{feature.index}", words)


def _latents(model: LanguageModel, text: str) -> None:
    hits = []
    for one in dictionaries.fitting(model):
        index = dictionaries.usable_index(model, one)
        if index is not None:
            hits += [(one, hit) for hit in index.search(text, limit=LATENTS)]
    if not hits:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Latents about it:", width="content")
        for one, hit in hits:
            words = hit.label or ", ".join(map(visible, hit.activating[:3]))
            _offer(model, f"{one.name}:{hit.index}", f"{one.title}:{hit.index}", words)


def _offer(model: LanguageModel, feature: str, name: str, words: str) -> None:
    st.button(
        f"**{plain(name)}** {plain(words)}", key=f"add {feature}", on_click=edits.add_feature, args=(model, feature)
    )
