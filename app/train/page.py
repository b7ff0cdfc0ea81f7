"""Train: start a training, watch its curves, stop it and go on with it."""

import streamlit as st
from shared import session
from shared.waiting import one_sentence
from train import new_training, run_panel, runs

NEW = "a new training"

model = session.current_model()
found = {run.folder.name: run for run in runs.all_runs()}
going = runs.current()
wanted = st.session_state.pop("run to show", None)
if "run" not in st.session_state and going is not None:
    wanted = going.name
if wanted in found:
    st.session_state["run"] = wanted
if st.session_state.get("run") not in (NEW, *found):
    st.session_state["run"] = NEW
chosen = st.selectbox("Show", [NEW, *found], key="run", persist_state="session")
with one_sentence():
    if chosen == NEW:
        new_training.show(model)
    else:
        run_panel.show(model, found[chosen])
