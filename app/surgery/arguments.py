"""The next operation: its name, its settings, and the texts that its cost is measured on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import corpora, dictionaries, edits, pages, places

import workbench as wb
from surgery import panel
from surgery.panel import SurgeryRequest
from workbench.core.text import plain
from workbench.surgery.registry import OPERATIONS, Argument, Operation

if TYPE_CHECKING:
    from workbench.model import LanguageModel

FIRST = "bake"
"""The first operation in the list."""
NOT_READY = object()
"""The value of a widget that holds nothing that can be used; None is an argument that is left out."""


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
    ready = all(value is not NOT_READY for value in arguments.values())
    source = st.session_state["source"]
    return (
        SurgeryRequest(source, caching.as_placed(now), name, arguments, corpus, int(tokens)) if ready else None
    ), button


def _argument(model: LanguageModel, now: LanguageModel, operation: Operation, one: Argument) -> Any:
    """Draw the widget of one argument; returns its value, or `NOT_READY` while the value can't be used."""
    key, how = f"surgery {operation.name} {one.name}", {"help": one.help or None, "persist_state": "session"}
    if one.kind == "edits":
        return _edits(model)
    if one.kind in ("feature", "direction"):
        first = one.default if isinstance(one.default, str) else ""  # a vector has no id
        return _feature(model, now, one, st.text_input(one.title, first, key=key, **how).strip())
    if one.kind == "yes":
        return st.toggle(one.title, bool(one.default), key=key, **how)
    if one.kind == "choice":
        first = None if one.default is None else one.choices.index(one.default)
        return st.selectbox(one.title, one.choices, first, key=key, **how)
    if one.kind in ("number", "whole"):
        return _number(one, key, how)
    if one.kind == "text":
        value: Any = _text(st.text_input(one.title, one.default or "", key=key, **how).strip())
    else:
        count = now.network.n_layers if one.kind == "layers" else now.network.n_heads
        if any(number >= count for number in st.session_state.get(key, [])):  # the model has become smaller
            st.session_state[key] = [number for number in st.session_state[key] if number < count]
        empty = "Choose at least one" if one.default is not None else "Left out"
        value = st.multiselect(one.title, range(count), key=key, placeholder=empty, **how)
    return None if one.default is None and not value else value


def _text(typed: str) -> Any:
    """The text of an argument, which may be paths or names, separated by semicolons or line breaks.

    Draws the error and returns `NOT_READY` where a visitor may not use one of them.
    """
    try:
        for part in re.split(r"[;\n]", typed):
            places.allowed(part.strip())
        return typed
    except places.PlaceError as error:
        st.error(plain(error), icon=":material/error:")
        return NOT_READY


def _number(one: Argument, key: str, how: dict[str, Any]) -> float | None:
    """Draw the box of a number; it is empty, and the number None, for an argument that is left out."""
    form = int if one.kind == "whole" else float
    low, high, first = (None if number is None else form(number) for number in (one.low, one.high, one.default))
    if first is None:
        how = how | {"placeholder": "Left out"}
    if one.kind == "whole":
        return st.number_input(one.title, low, high, first, 1, key=key, **how)
    return st.number_input(one.title, low, high, first, key=key, format="%.4g", **how)


def _feature(model: LanguageModel, now: LanguageModel, one: Argument, typed: str) -> Any:
    """The feature of this id, which stands for its direction in an argument that takes one.

    Draws the error and returns `NOT_READY` for an id that is wrong or missing.
    """
    if not typed and one.default is None:
        return None
    if not typed and one.kind == "direction":
        st.caption(f"{plain(one.title)}: type the id of a feature, such as neurons.1.post:5.")
        return NOT_READY
    try:
        feature = dictionaries.feature(model, typed)
        if one.kind == "direction":
            wb.surgery.direction_of(now, feature)
        return feature
    except (ValueError, KeyError) as error:
        st.error(plain(error), icon=":material/error:")
        return NOT_READY


def _edits(model: LanguageModel) -> Any:
    """Draw the edits of the page Steer, which can be changed here too; returns them."""
    st.page_link(
        pages.script("steer"), label="These are the edits of the page Steer; add more there.", icon=":material/tune:"
    )
    return edits.show(model)
