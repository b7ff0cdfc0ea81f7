"""Browse: search the model's neurons or a dictionary's latents for a word, and open one."""

import streamlit as st
from browse import card, indexing, latent_card, latents, search
from shared import chooser, dictionaries, session
from shared.waiting import one_sentence

from workbench import Feature

model = session.current_model()
feature = session.linked_feature()
chooser.follow(model, feature)
chosen = chooser.choose(model)
trouble, found = st.container(), st.container()
if feature := st.session_state.get("open"):
    with one_sentence(trouble):
        try:
            shown = card if dictionaries.is_neuron(Feature.parse(feature)) else latent_card
            shown.show(model, feature)
        except Exception:
            st.session_state["open"] = None  # a wrong link is not opened again
            raise
with found:
    if chosen is None:
        search.show(model)
    elif chosen.indexed:
        latents.show(model, chosen)
    else:
        indexing.show(model, chosen)
