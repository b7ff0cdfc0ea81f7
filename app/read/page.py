"""Read: what a model predicts after each token of a text, layer by layer, and what its prediction is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from caching import Stopped
from shared import edits, session, snippets
from shared.sample import sample_text
from shared.waiting import begin_again, one_sentence, wait_for

from read import cell, findings, grid, reading, script, strip
from read.reading import Cell
from read.request import TextRequest

if TYPE_CHECKING:
    from workbench.model import LanguageModel

TEXT = "The capital of France is the beautiful city of"
READ, CHAT = "Text", "Chat"
READING = "reading"  # key of the session: the text that was read last
WHAT = "Reading the layers"


def show() -> None:
    """Draw the text, and what was read of it last."""
    model = session.current_model()
    request, wanted = _ask(model)
    if wanted or READING not in st.session_state:
        st.session_state[READING] = request
        st.session_state.pop(grid.ROW, None)
        st.session_state.pop(grid.POSITION, None)
        begin_again(WHAT)
    text: TextRequest = st.session_state[READING]
    if text != request:
        st.caption(":material/info: The text has changed since it was read; press Read to read it again.")
    with one_sentence():
        try:
            _show(model, text)
        except Stopped:
            st.info("Reading was stopped; press Read to begin again.", icon=":material/pause:")


def _ask(model: LanguageModel) -> tuple[TextRequest, bool]:
    """Draw the text and how it is read; returns the request, and whether the button was pressed."""
    can_chat = bool(getattr(model.tokenizer, "chat_template", None))
    if st.session_state.get("read text", TEXT) == TEXT:
        st.session_state["read text"] = sample_text(model, TEXT)
    typed = st.text_area("Text", key="read text", height=80, persist_state="session")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        wanted = st.button("Read", type="primary", icon=":material/visibility:", key="read now")
        mode = READ
        if can_chat:
            st.session_state.setdefault("read mode", READ)
            mode = st.segmented_control(
                "Read it as",
                [READ, CHAT],
                key="read mode",
                required=True,
                label_visibility="collapsed",
                persist_state="session",
                help="As it stands, or as a message in the model's chat template.",
            )
        steered = edits.current()
        under = bool(steered) and st.toggle(
            f"Under the {len(steered)} edits of Steer" if len(steered) > 1 else "Under the edit of Steer",
            key="read under edits",
            persist_state="session",
        )
    interventions = tuple(steered) if under else ()
    return TextRequest(session.source(), mode == CHAT, typed, interventions), wanted


def _show(model: LanguageModel, text: TextRequest) -> None:
    """Draw the tokens, the grid, and the open cell."""
    above = st.container()
    st.subheader("Layer by layer", anchor=False)
    lens, by = grid.ask(model, grid.kinds(model))
    read = wait_for(lambda: reading.start(model, text, lens), WHAT, may_stop=True)
    with above, one_sentence():
        strip.show(model, text, read)
    row, position = grid.show(read, lens, by)
    opened = Cell(model, text, lens, read, row, position)
    cell.show(opened)
    with one_sentence():
        findings.show(opened)
    snippets.show(script.reading(opened))


if __name__ == "__main__":
    show()
