"""Compare: two dictionaries' fidelity to the model, side by side."""

import streamlit as st
from compare import fidelity
from compare.fidelity import Asked
from shared import corpora, dictionaries, session
from shared.waiting import one_sentence

model = session.current_model()
offered = {one.name: one for one in dictionaries.fitting(model)}
if len(offered) < 2:
    st.info("Two dictionaries for this model are needed. Train one on the page Train.", icon=":material/info:")
    st.stop()
names = list(offered)
for key, first in (("compared first", names[0]), ("compared second", names[1])):
    if st.session_state.get(key) not in offered:
        st.session_state[key] = first


def _titled(name: str) -> str:
    return f"{offered[name].title} · {offered[name].reads}"


left, right = st.columns(2)
one = left.selectbox("First", names, key="compared first", format_func=_titled, persist_state="session")
two = right.selectbox("Second", names, key="compared second", format_func=_titled, persist_state="session")
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
    help="More tokens give narrower intervals, and take longer. Texts that neither was trained on are best.",
)
chosen = dict.fromkeys((one, two))
asked = Asked(
    st.session_state["source"],
    tuple(chosen),
    tuple(offered[name].folder for name in chosen),
    corpus,
    int(tokens),
    repr([model.hash, *(offered[name].stamp for name in chosen)]),
)
with one_sentence():
    if button.button(
        "Measure", type="primary", icon=":material/balance:", width="stretch", key="measure", disabled=one == two
    ):
        fidelity.begin(model, asked)
    if one == two:
        st.caption("Choose two different dictionaries.")
    else:
        fidelity.show(asked)
