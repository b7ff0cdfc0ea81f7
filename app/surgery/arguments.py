"""The next operation: its name, its settings, and the texts that its cost is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import corpora, dictionaries, pages
from shared.tokens import plain
from steer import edits

from surgery import panel
from surgery.panel import SurgeryRequest
from workbench.surgery.registry import OPERATIONS, Argument, Operation

if TYPE_CHECKING:
    from workbench.model import LanguageModel

FIRST = "bake"
"""The first operation in the list."""


def show(model: LanguageModel) -> tuple[SurgeryRequest | None, Any]:
    """Draw the widgets; returns their request, None while an argument is missing, and a place for the button."""
    st.subheader("Next", anchor=False)
    chooser, about = st.columns([2, 3], vertical_alignment="bottom")
    name = chooser.selectbox(
        "Operation",
        sorted(OPERATIONS, key=lambda one: one != FIRST),
        format_func=lambda one: OPERATIONS[one].title,
        key="surgery operation",
        persist_state="session",
    )
    operation = OPERATIONS[name]
    about.caption(plain(operation.about))
    now = panel.current_model(model)
    arguments = {one.name: _argument(model, now, operation, one) for one in operation.arguments}
    texts, count, button = st.columns([3, 2, 1.2], vertical_alignment="bottom")
    corpus = corpora.choose("surgery corpus", texts, title="Texts to measure on")
    tokens = count.number_input(
        "Tokens to measure on",
        64,
        None,
        2048,
        512,
        key="surgery tokens",
        persist_state="session",
        help="The cost is measured on this many tokens. Of the bundled stories a held-out tenth is used.",
    )
    ready = all(value is not None for value in arguments.values())
    source = st.session_state["source"]
    return (SurgeryRequest(source, now.hash, name, arguments, corpus, int(tokens)) if ready else None), button


def _argument(model: LanguageModel, now: LanguageModel, operation: Operation, one: Argument) -> Any:
    """Draw the widget of one argument; returns its value, or None while the value can't be used."""
    key, how = f"surgery {operation.name} {one.name}", {"help": one.help or None, "persist_state": "session"}
    value: Any
    if one.kind == "edits":
        value = _edits(model)
    elif one.kind == "feature":
        value = _feature(model, st.text_input(one.title, one.default, key=key, **how).strip())
    elif one.kind == "yes":
        value = st.toggle(one.title, one.default, key=key, **how)
    elif one.kind == "choice":
        value = st.selectbox(one.title, one.choices, one.choices.index(one.default), key=key, **how)
    elif one.kind in ("layers", "heads"):
        count = now.network.n_layers if one.kind == "layers" else now.network.n_heads
        if any(number >= count for number in st.session_state.get(key, [])):  # the model has become smaller
            st.session_state[key] = [number for number in st.session_state[key] if number < count]
        value = st.multiselect(one.title, range(count), key=key, placeholder="Choose at least one", **how)
    elif one.kind == "text":
        value = st.text_input(one.title, one.default, key=key, **how).strip()
    elif one.kind == "whole":
        low, high = (None if end is None else int(end) for end in (one.low, one.high))
        value = st.number_input(one.title, low, high, int(one.default), 1, key=key, **how)
    else:
        low, high = (None if end is None else float(end) for end in (one.low, one.high))
        value = st.number_input(one.title, low, high, float(one.default), key=key, format="%.4g", **how)
    return value


def _feature(model: LanguageModel, typed: str) -> Any:
    """The feature of this id; draws the error and returns None for a wrong id."""
    try:
        return dictionaries.feature(model, typed)
    except (ValueError, KeyError) as error:
        st.error(plain(error), icon=":material/error:")
        return None


def _edits(model: LanguageModel) -> Any:
    """Draw the edits of the page Steer, which can be changed here too; returns them."""
    st.page_link(
        pages.script("steer"), label="These are the edits of the page Steer; add more there.", icon=":material/tune:"
    )
    return edits.show(model)
