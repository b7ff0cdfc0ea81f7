"""Surgery: change the model's weights step by step, see what each step costs, take the model home."""

import streamlit as st
from shared import session, snippets
from shared.waiting import one_sentence
from surgery import arguments, panel, saving, texts

model = session.current_model()
if model.splices:
    st.info(
        "This model runs through dictionaries, which an ordinary checkpoint can't hold. Choose a model without them.",
        icon=":material/info:",
    )
    st.stop()
panel.restore(model)
with st.container():
    panel.show_steps(model)
with st.container(), one_sentence():
    asked, button = arguments.show(model)
    wanted = button.button(
        "Try it", type="primary", icon=":material/science:", width="stretch", key="surgery try", disabled=asked is None
    )
    if wanted and asked is not None:
        panel.begin(model, asked)
with st.container(), one_sentence():
    panel.follow(asked)
    panel.show_trial()
seen = panel.shown()
if seen:
    with st.container(), one_sentence():
        texts.show(model, seen[-1].child)
with st.container(), one_sentence():
    saving.show(model)
if seen:
    with one_sentence():
        folder = st.session_state["surgery folder"]
        snippets.show(saving.code(st.session_state["source"], seen, folder))
