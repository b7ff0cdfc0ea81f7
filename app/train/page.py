"""Train: start a training, watch its curves, stop and resume it."""

import streamlit as st
from shared import session
from shared.waiting import one_sentence

from train import new_training, run_panel, runs

NEW = "a new training"


def show() -> None:
    """Draw the form of a new training, or the training that is chosen."""
    model = session.current_model()
    known = {run.folder.name: run for run in runs.all_runs()}
    going = runs.current()
    wanted = st.session_state.pop("run to show", None)
    if "run" not in st.session_state and going is not None:
        wanted = going.name
    if wanted in known:
        st.session_state["run"] = wanted
    if st.session_state.get("run") not in (NEW, *known):
        st.session_state["run"] = NEW
    chosen = st.selectbox("Show", [NEW, *known], key="run", persist_state="session")
    with one_sentence():
        if chosen == NEW:
            new_training.show(model)
        else:
            run_panel.show(model, known[chosen])


if __name__ == "__main__":
    show()
