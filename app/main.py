"""Workbench in the browser: `streamlit run app/main.py`. Navigation, the shared sidebar, the model."""

import streamlit as st
from components import outline, session, tokens

EXPLAINED = {
    "Browse": "Each neuron of a model has a vector of weights. Multiplied with the matrix that turns the model's state "
    "into words, it scores every word the model knows: the highest ones say what the neuron is about.",
    "Steer": "Hold neurons at a value while the model writes, and read what it writes with and without that.",
}

st.set_page_config("Workbench", "app/icon.svg", layout="wide", initial_sidebar_state=270)
st.logo("app/logo.svg", size="large", icon_image="app/icon.svg")
page = st.navigation(
    [
        st.Page(session.BROWSE, title="Browse", icon=":material/search:", default=True),
        st.Page(session.STEER, title="Steer", icon=":material/tune:"),
    ]
)
tokens.use_style()
session.choose_model()
st.title(page.title, anchor=False)
st.caption(EXPLAINED[page.title])
top, below = st.container(), st.empty()
if page.title == "Browse" and not session.is_open():
    with below:
        outline.show()
with top:
    session.open_model()
below.empty()
page.run()
