"""Browse: search all neurons for a word and open one."""

import streamlit as st
from components import card, search, session
from components.waiting import one_sentence

model = session.current_model()
trouble, found = st.container(), st.container()
feature = session.linked_feature()
if feature:
    with one_sentence(trouble):
        st.session_state["open"] = None  # a wrong link is not opened again
        card.show(model, feature)
        st.session_state["open"] = feature
with found:
    search.show(model)
