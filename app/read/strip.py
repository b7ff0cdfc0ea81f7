"""The text as a strip of tokens, coloured by how the model doubts each, or by features that are active on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from shared.tokens import show_strengths

from read import firing
from read.reading import LayerReading
from read.request import TextRequest
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.model import LanguageModel

COLOURS = ("surprise", "entropy", "features")
MEANINGS = {
    "surprise": "how little the model expected the token from those before it: −log p, in nats",
    "entropy": "how open the model is about what follows the token, in nats",
}


def show(model: LanguageModel, text: TextRequest, reading: LayerReading) -> None:
    """Draw the strip and what it is coloured by."""
    head, chooser = st.columns([3, 2], vertical_alignment="bottom")
    head.subheader("Token by token", anchor=False)
    by = chooser.segmented_control(
        "Colour tokens by",
        COLOURS,
        key="strip colour",
        required=True,
        default=COLOURS[0] if "strip colour" not in st.session_state else None,
        persist_state="session",
    )
    if by == "features":
        firing.show(model, text)
    else:
        _doubt(reading, by or COLOURS[0])


def _doubt(reading: LayerReading, by: str) -> None:
    """Draw the tokens by their surprise, or by the entropy behind them."""
    if reading.doubt is None:
        with st.container(border=True):
            show_strengths(reading.prompt, [0.0] * len(reading.prompt), reading.prompt)
        st.info(plain(reading.trouble), icon=":material/info:")
        return
    values = getattr(reading.doubt, by).nan_to_num(0.0).tolist()
    labels = []
    for place, value in enumerate(values):
        answer = f"then {visible(reading.words[reading.answers[place]])} {reading.sure[place]:.0%}"
        number = f"{by} {value:.2f} nats" if by == "entropy" or place else "the first token"
        labels.append(f"{place}: {number}; {answer}")
    with st.container(border=True):
        show_strengths(reading.prompt, values, labels)
    st.caption(
        f"Colour: {MEANINGS[by]}; the highest here is darkest. Point at a token for its number and for what the model "
        "expects after it; dots are spaces."
    )
