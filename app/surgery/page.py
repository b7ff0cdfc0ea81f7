"""Surgery: edit the model's weights step by step, measure each step, save a checkpoint."""

import streamlit as st
from shared import session, snippets
from shared.waiting import one_sentence

from surgery import arguments, panel, saving, texts


def show() -> None:
    """Draw the steps, the next operation with its trial, the texts, and the folder."""
    model = session.current_model()
    if model.splices:
        st.info(
            "This model runs through dictionaries, which an ordinary checkpoint can't hold. Choose a model without "
            "them.",
            icon=":material/info:",
        )
        return
    panel.restore(model)
    with st.container():
        panel.show_steps(model)
    with st.container(), one_sentence():
        request, button = arguments.show(model)
        wanted = button.button(
            "Try it",
            type="primary",
            icon=":material/science:",
            width="stretch",
            key="surgery try",
            disabled=request is None,
        )
        if wanted and request is not None:
            panel.begin(model, request)
    with st.container(), one_sentence():
        panel.follow(request)
        panel.show_trial()
    steps = panel.steps_and_trial()
    if steps:
        with st.container(), one_sentence():
            texts.show(model, steps[-1].child)
    with st.container(), one_sentence():
        saving.show(model)
    if steps:
        with one_sentence():
            folder = st.session_state["surgery folder"]
            snippets.show(saving.code(st.session_state["source"], steps, folder))


if __name__ == "__main__":
    show()
