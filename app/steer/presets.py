"""Examples of edits with a visible effect, for the default model, each behind one button."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
from shared import edits, session
from shared.sample import QUESTION

import workbench as wb
from steer import conversation
from steer.prompt import CHAT, CONTINUE

STORY = "Once upon a time, there was a"


@dataclass(frozen=True)
class Preset:
    """An edit with a prompt that shows its effect."""

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
    """Draw a button for each preset, on the default model."""
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
    st.session_state.pop(conversation.TURNS, None)
