"""Circuits: which heads do a task, by several methods side by side, and the task without them."""

import streamlit as st
from circuits import panel
from circuits.asked import METHODS, OWN, Asked
from shared import session
from shared.tokens import plain
from shared.waiting import one_sentence

from workbench.circuits import TASKS

EXAMPLE = """\
{"positive": "When Mary and John went to the store, John gave a drink to",
 "corrupted": "When Mary and John went to the store, Paul gave a drink to", "answers": [" Mary"], "wrong": [" John"]}
{"positive": "When Anna and Mark went to the store, Anna gave a drink to",
 "corrupted": "When Anna and Mark went to the store, Paul gave a drink to", "answers": [" Mark"], "wrong": [" Anna"]}
""".replace(",\n ", ", ")

model = session.current_model()
chosen, count, number = st.columns([3, 1, 1])
name = chosen.selectbox(
    "Task",
    [*TASKS, OWN],
    format_func=lambda one: one[0].upper() + one[1:],
    key="circuit task",
    persist_state="session",
    help="Tasks that are made for this model's tokens, or prompts of your own.",
)
pairs = count.number_input(
    "Pairs of prompts", 2, 500, 10, key="circuit pairs", persist_state="session", disabled=name == OWN
)
seed = number.number_input("Seed", 0, 9999, 0, key="circuit seed", persist_state="session")
own = ""
if name == OWN:
    st.session_state.setdefault("circuit own", EXAMPLE)
    own = st.text_area(
        "JSON lines",
        key="circuit own",
        height=140,
        persist_state="session",
        help="A line for each pair: positive, corrupted, answers and wrong. All prompts need the same number of "
        "tokens, and each answer is one token.",
    )
which, button = st.columns([6, 1.4], vertical_alignment="bottom")
methods = which.multiselect(
    "Methods",
    list(METHODS),
    default=["discrete", "attribution", "patch"],
    format_func=METHODS.__getitem__,
    key="circuit methods",
    persist_state="session",
    help="Patching and the ablations run the model once for every head and prompt: a minute or two for 10 pairs. "
    "Patching is what the others are held against.",
)
asked = Asked(
    st.session_state["source"],
    name,
    int(pairs),
    int(seed),
    own,
    tuple(method for method in METHODS if method in methods),
    model.hash,
)
if button.button(
    "Find heads", type="primary", icon=":material/lan:", width="stretch", key="find heads", disabled=not methods
):
    with one_sentence():
        panel.begin(model, asked)
        st.session_state["circuit"] = asked
shown = st.session_state.get("circuit")
if shown is not None:
    if shown != asked:
        st.caption(plain(f"The settings have changed; these are the heads of: {shown.name}, seed {shown.seed}"))
    with one_sentence():
        panel.show(model, shown)
