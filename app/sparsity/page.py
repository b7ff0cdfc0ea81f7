"""Sparsity: how many neurons a model can do without, at what price, and which words need most."""

import caching
import streamlit as st
from shared import corpora, session
from shared.waiting import one_sentence, wait_for
from sparsity import neurons, panel, text
from sparsity.panel import INCREASES, Asked

NONE = "no other"

model = session.current_model()
source = st.session_state["source"]
others = [NONE, *(name for name in st.session_state["known models"] if name != source)]
if st.session_state.get("sparsity other") not in others:
    st.session_state["sparsity other"] = NONE
texts, count, beside, button = st.columns([3, 1.6, 3, 1.4], vertical_alignment="bottom")
corpus = corpora.choose("sparsity corpus", texts)
tokens = count.number_input(
    "Tokens",
    64,
    None,
    2048,
    1024,
    key="sparsity tokens",
    persist_state="session",
    help="Half to find the thresholds on, half to report on. More give narrower intervals, and take longer.",
)
other = beside.selectbox(
    "Beside it", others, key="sparsity other", persist_state="session", help="A second model, on the same texts."
)
p = st.select_slider(
    "Perplexity may rise by",
    INCREASES,
    0.01,
    format_func=lambda share: f"{share:.1%}",
    key="sparsity p",
    persist_state="session",
    help="The price: how much more surprised by the texts the model may be when neurons are left out.",
)
with one_sentence():
    models = [model]
    if other != NONE:
        models.append(wait_for(lambda: caching.opening(other), f"Opening {other}"))
    names = [source, other][: len(models)]
    asked = [Asked(name, one.hash, corpus, int(tokens)) for name, one in zip(names, models, strict=True)]
    if button.button("Measure", type="primary", icon=":material/blur_on:", width="stretch", key="measure sparsity"):
        for one, of in zip(asked, models, strict=True):
            panel.begin(of, one)
    panel.show(asked, p)
    read = [
        (of, one, found[INCREASES.index(p)])
        for of, one in zip(models, asked, strict=True)
        if (found := panel.known(one))
    ]
    if read:
        text.show(*zip(*read, strict=True))
        neurons.show(*read[0])
