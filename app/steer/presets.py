"""Examples that show an effect at one click, on the default model."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
from shared import session
from steer import edits
from steer.asking import CHAT, CONTINUE, QUESTION

import workbench as wb

STORY = "Once upon a time, there was a"


@dataclass(frozen=True)
class Preset:
    """Edits with a prompt that shows them."""

    name: str
    feature: str
    value: float
    text: str
    chat: bool = True


PRESETS = [
    Preset("Dog neuron: favourite animal?", "neurons.29.gate:808", 20.0, QUESTION),
    Preset("The same, harder", "neurons.29.up:808", 10.0, QUESTION),
    Preset("Water neuron: a story", "neurons.28.post:879", 30.0, STORY, chat=False),
    Preset("French neuron: the same story", "neurons.29.gate:864", 20.0, STORY, chat=False),
]


def show() -> None:
    """One button for each."""
    if st.session_state["source"] != session.DEFAULT:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Try it", width="content")
        for preset in PRESETS:
            st.button(preset.name, key=f"preset {preset.name}", on_click=_take, args=(preset,))


def _take(preset: Preset) -> None:
    edits.set_rows([wb.Clamp(wb.Feature.parse(preset.feature), preset.value)])
    st.session_state["prompt"] = preset.text
    st.session_state["mode"] = CHAT if preset.chat else CONTINUE
    st.session_state["generate"] = True
