"""Steer: change neurons and latents while the model generates.

Each part has its own container, so that no part moves while another is redrawn.
"""

import streamlit as st
from shared import edits, session
from shared.waiting import one_sentence

from steer import adder, answer, curve, presets, prompt, storage


def show() -> None:
    """Draw the edits, the prompt, the answer and the curve."""
    model = session.current_model()
    trouble = st.container()
    link, address = st.query_params.get(session.FEATURE), dict(st.query_params)
    if wrong := session.foreign_link():
        trouble.error(wrong)
    elif link and st.session_state.get("linked") != address:
        st.session_state["linked"] = address
        with one_sentence(trouble):
            edits.add_feature(model, link)
    adder.clear()

    presets.show()
    st.subheader("Edits", anchor=False)
    with st.container():
        interventions = edits.show(model)
    box, files = st.columns([5, 2])
    offers = st.container()
    with box:
        adder.show(model, offers)
    with files:
        st.space("small")
        storage.show(model, interventions)
    with trouble:
        storage.show_trouble()

    request, button = prompt.show(model, interventions)
    wanted = button.button("Generate", type="primary", icon=":material/play_arrow:", key="generate now")
    written = st.empty()
    if wanted or st.session_state.pop("generate", False):
        st.session_state.pop("answer", None)
        with written.container(), one_sentence():
            answer.write(model, request, button)
    elif "answer" in st.session_state:
        with written.container(), one_sentence():
            answer.show(model, st.session_state["answer"], request)
    with st.container(), one_sentence():
        curve.show(model, request)


if __name__ == "__main__":
    show()
