"""Inspect: read a text and see which features fire on each of its tokens."""

import streamlit as st
from browse import firing
from shared import dictionaries, session
from shared.sample import sample_text
from shared.tokens import plain
from shared.waiting import one_sentence

from workbench.measures.firing import active_features

TEXT = "The dog ran to the river, and the old man told his children the story of the war."

model = session.current_model()
offered = {one.name: one for one in dictionaries.fitting(model)}
if not offered:
    st.info(
        "There is no dictionary for this model yet. Train one on the page Train, or give the folder of one on Browse.",
        icon=":material/info:",
    )
    st.stop()
if st.session_state.get("inspected", TEXT) == TEXT:
    st.session_state["inspected"] = sample_text(model, TEXT)
kept = [name for name in st.session_state.get("inspected with", []) if name in offered]
browsed = st.session_state.get("dictionary")
indexed = [name for name, one in offered.items() if one.indexed]
first = browsed if browsed in offered else [*indexed, *offered][0]
st.session_state["inspected with"] = kept or [first]
text = st.text_area("Text", key="inspected", height=100, persist_state="session")
which, count, button = st.columns([5, 2, 1.3], vertical_alignment="bottom")
names = which.multiselect(
    "Dictionaries",
    list(offered),
    format_func=lambda name: f"{offered[name].title} · {offered[name].reads}",
    key="inspected with",
    persist_state="session",
)
top = count.slider("Features per token, at most", 1, 30, 8, key="inspected top", persist_state="session")
wanted = button.button("Read", type="primary", icon=":material/visibility:", width="stretch", key="read now")
asked = (st.session_state["source"], text, tuple(names), top)
reading = st.session_state.get("reading")
if not names:
    st.caption("Choose at least one dictionary.")
elif wanted or reading is None:
    with one_sentence(), st.spinner("The model is reading …"):
        loaded = [dictionaries.load(model, offered[name]) for name in names]
        reading = firing.Reading(*asked, active_features(model, loaded, text, top))
        st.session_state["reading"] = reading
if reading is not None:
    if (reading.source, reading.text, reading.names, reading.top) != asked:
        st.caption(":material/info: The settings have changed since this was read; press Read to read it anew.")
    if set(reading.names) <= set(offered):
        with one_sentence():
            firing.show(model, reading)
    else:
        st.caption(plain("The dictionaries that this was read with are no longer there."))
