"""Surgery: change the model's weights step by step, see what each step costs, take the model home."""

import streamlit as st
from components import session, snippets, surgery, surgery_arguments, surgery_saving, surgery_texts
from components.waiting import one_sentence

model = session.current_model()
if model.splices:
    st.info(
        "This model runs through dictionaries, which an ordinary checkpoint can't hold. Choose a model without them.",
        icon=":material/info:",
    )
    st.stop()
surgery.restore(model)
with st.container():
    surgery.show_steps(model)
with st.container(), one_sentence():
    asked, button = surgery_arguments.show(model)
    wanted = button.button(
        "Try it", type="primary", icon=":material/science:", width="stretch", key="surgery try", disabled=asked is None
    )
    if wanted and asked is not None:
        surgery.begin(model, asked)
with st.container(), one_sentence():
    surgery.follow(asked)
    surgery.show_trial()
seen = surgery.shown()
if seen:
    with st.container(), one_sentence():
        surgery_texts.show(model, seen[-1].child)
with st.container(), one_sentence():
    surgery_saving.show(model)
if seen:
    with one_sentence():
        folder = st.session_state["surgery folder"]
        snippets.show(surgery_saving.code(st.session_state["source"], seen, folder))
