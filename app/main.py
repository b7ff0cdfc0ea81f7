"""Workbench in the browser: `streamlit run app/main.py`. Navigation, the shared sidebar, the model.

The server imports this file once, and begins to open the model while the browser is still loading the page; every view
of a page runs it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import caching
import streamlit as st
from shared import outline, session, tokens

EXPLAINED = {
    "Browse": "Look for what the model's parts are about: a neuron is read through the words that its weights score "
    "highest, a latent of a trained dictionary through the texts on which it is active.",
    "Inspect": "Type a text and see which features of the model are active on each of its words.",
    "Steer": "Hold neurons or latents at a value while the model writes, and read what comes of it.",
    "Train": "Let a sparse dictionary learn the features that a layer's activations are made of.",
    "States": "A model of a language whose truth is known: which codes stand for which state, and what the model "
    "expects next when they are forced.",
    "Sparsity": "Find out how many of the model's neurons each word can do without, and at what price.",
    "Attribution": "See which features a prediction is made of, what leads to what, and what happens without them.",
    "Circuits": "Find the attention heads that do a task, by several methods side by side, and take the others away.",
    "Surgery": "Write changes into the model's weights, see what they cost, and save an ordinary checkpoint.",
    "Compare": "Measure how much of the model two dictionaries keep when it runs through them.",
}


@asynccontextmanager
async def opening(_: st.App) -> AsyncIterator[None]:
    """Open the default model with the server."""
    caching.opening(session.DEFAULT)
    yield


def show() -> None:
    """The page that the address asks for."""
    st.set_page_config("Workbench", "app/icon.svg", layout="wide", initial_sidebar_state=270)
    st.logo("app/logo.svg", size="large", icon_image="app/icon.svg")
    machines = [st.Page(session.STATES, title="States", url_path="states", icon=":material/account_tree:")]
    page = st.navigation(
        [
            st.Page(session.BROWSE, title="Browse", url_path="browse", icon=":material/search:", default=True),
            st.Page(session.INSPECT, title="Inspect", url_path="inspect", icon=":material/visibility:"),
            st.Page(session.STEER, title="Steer", url_path="steer", icon=":material/tune:"),
            st.Page(session.TRAIN, title="Train", url_path="train", icon=":material/model_training:"),
            st.Page(session.COMPARE, title="Compare", url_path="compare", icon=":material/balance:"),
            st.Page(session.SURGERY, title="Surgery", url_path="surgery", icon=":material/content_cut:"),
            st.Page(session.ATTRIBUTION, title="Attribution", url_path="attribution", icon=":material/hub:"),
            st.Page(session.CIRCUITS, title="Circuits", url_path="circuits", icon=":material/lan:"),
            st.Page(session.SPARSITY, title="Sparsity", url_path="sparsity", icon=":material/blur_on:"),
            *(machines if session.may_know_states() else []),
        ]
    )
    tokens.use_style()
    session.choose_model()
    session.link_changes()
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


if __name__ == "__main__":
    show()
else:
    app = st.App(__file__, lifespan=opening)
