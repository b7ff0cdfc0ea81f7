"""Browse: search the model's neurons or a dictionary's latents, and open one."""

import streamlit as st
from shared import dictionaries, indexing, latent_card, session
from shared.waiting import one_sentence

from browse import card, chooser, latents, search
from workbench import Feature


def show() -> None:
    """Draw the chooser, the open feature's card, and the search."""
    model = session.current_model()
    if wrong := session.foreign_link():
        st.error(wrong)
    chooser.follow(model, session.linked_feature())
    chosen = chooser.choose(model)
    trouble, results = st.container(), st.container()
    if feature := st.session_state.get("open"):
        with one_sentence(trouble):
            try:
                opened = card if dictionaries.is_neuron(Feature.parse(feature)) else latent_card
                opened.show(model, feature)
            except Exception:
                st.session_state["open"] = None  # a wrong link is not opened again
                raise
    with results:
        if chosen is None:
            search.show(model)
        elif chosen.indexed:
            latents.show(model, chosen)
        else:
            indexing.show(model, chosen)


if __name__ == "__main__":
    show()
