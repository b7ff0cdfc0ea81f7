"""Circuits: the heads that do a task, by several methods side by side, and the task without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import session
from shared.waiting import one_sentence

from circuits import panel, positions
from circuits.request import METHODS, OWN, CircuitRequest
from workbench.circuits import TASKS
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel

EXAMPLE = """\
{"positive": "When Mary and John went to the store, John gave a drink to",
 "corrupted": "When Mary and John went to the store, Paul gave a drink to", "answers": [" Mary"], "wrong": [" John"]}
{"positive": "When Anna and Mark went to the store, Anna gave a drink to",
 "corrupted": "When Anna and Mark went to the store, Paul gave a drink to", "answers": [" Mark"], "wrong": [" Anna"]}
""".replace(",\n ", ", ")


def show() -> None:
    """Draw the settings and the heads that were found last."""
    model = session.current_model()
    request, wanted = _ask(model)
    if wanted:
        with one_sentence():
            panel.begin(model, request)
            st.session_state["circuit"] = request
    latest = st.session_state.get("circuit")
    if latest is not None:
        if latest != request:
            st.caption(plain(f"The settings have changed; these are the heads of: {latest.name}, seed {latest.seed}"))
        with one_sentence():
            panel.show(model, latest)
    st.divider()
    positions.show(model)


def _ask(model: LanguageModel) -> tuple[CircuitRequest, bool]:
    """The widgets' request, and whether the button was pressed."""
    chooser, count, number = st.columns([3, 1, 1])
    name = chooser.selectbox(
        "Task",
        [*TASKS, OWN],
        format_func=lambda one: one[0].upper() + one[1:],
        key="circuit task",
        persist_state="session",
        help="Tasks generated for this model's tokens, or your own prompts.",
    )
    pairs = count.number_input(
        "Pairs of prompts", 2, 500, 10, key="circuit pairs", persist_state="session", disabled=name == OWN
    )
    seed = number.number_input("Seed", 0, 9999, 0, key="circuit seed", persist_state="session")
    own = _own_prompts() if name == OWN else ""
    which, button = st.columns([6, 1.4], vertical_alignment="bottom")
    methods = which.multiselect(
        "Methods",
        list(METHODS),
        default=["attribution"],
        format_func=METHODS.__getitem__,
        key="circuit methods",
        persist_state="session",
        help="Attribution patching takes seconds. Patching and the ablations run the model once for every head and "
        "prompt: a minute or two for 10 pairs. The other methods are compared with patching where it is among them.",
    )
    wanted = button.button(
        "Find heads", type="primary", icon=":material/lan:", width="stretch", key="find heads", disabled=not methods
    )
    request = CircuitRequest(
        st.session_state["source"],
        name,
        int(pairs),
        int(seed),
        own,
        tuple(method for method in METHODS if method in methods),
        caching.as_placed(model),
    )
    return request, wanted


def _own_prompts() -> str:
    """The prompts that the user typed, as JSON lines."""
    st.session_state.setdefault("circuit own", EXAMPLE)
    return st.text_area(
        "JSON lines",
        key="circuit own",
        height=140,
        persist_state="session",
        help="A line for each pair: positive, corrupted, answers and wrong. All prompts need the same number of "
        "tokens, and each answer is one token.",
    )


if __name__ == "__main__":
    show()
