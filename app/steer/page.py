"""Steer: change neurons and latents while the model writes.

Each part has its own container, so that no part moves while another one is being written.
"""

import streamlit as st
from shared import session
from shared.waiting import one_sentence
from steer import adder, answer, asking, curve, edits, presets, storage

model = session.current_model()
trouble = st.container()
link = st.query_params.get("feature")
if link and st.session_state.get("linked") != link:
    st.session_state["linked"] = link
    with one_sentence(trouble):
        edits.add_feature(model, link)
adder.clear()

presets.show()
st.subheader("Edits", anchor=False)
with st.container():
    interventions = edits.show(model)
box, files = st.columns([5, 2])
found = st.container()
with box:
    adder.show(model, found)
with files:
    st.space("small")
    storage.show(model, interventions)
with trouble:
    storage.show_trouble()

asked, button = asking.show(model, interventions)
wanted = button.button("Generate", type="primary", icon=":material/play_arrow:", key="generate now")
written = st.empty()
if wanted or st.session_state.pop("generate", False):
    st.session_state.pop("answer", None)
    with written.container(), one_sentence():
        answer.write(model, asked, button)
elif "answer" in st.session_state:
    with written.container(), one_sentence():
        answer.show(model, st.session_state["answer"], asked)
with st.container(), one_sentence():
    curve.show(model, asked)
