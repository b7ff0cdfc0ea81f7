"""States: a model of a finite state machine's language; codes that stand for states, and forcing them."""

import streamlit as st
from shared import session
from shared.waiting import one_sentence
from states import panel

model = session.current_model()
machine = session.machine_of(model)
if machine is None:
    offered = [name for name in session.shipped_models() if name.startswith("tokfsm")]
    st.info(
        "This page is for models of a finite state machine's language, whose truth is known.", icon=":material/info:"
    )
    with st.container(horizontal=True):
        for name in offered:
            st.button(name, key=f"open {name}", on_click=session.take_model, args=(name,))
    st.stop()
with one_sentence():
    panel.show(model, machine)
