"""What the model writes before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from shared.sample import sample_text
from shared.tokens import show_scale, show_tokens
from steer.asking import QUESTION
from surgery import panel

import workbench as wb
from workbench.model.decoding import TextStreamer

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.surgery import Child
    from workbench.surgery.certificate.texts import Texts

LENGTH = 48


@dataclass(frozen=True)
class Written:
    """What was asked, and what came of it."""

    prompt: str
    child: str
    """Hash of the changed model."""
    texts: Texts


def show(model: LanguageModel, child: Child) -> None:
    """A prompt and a button; both texts, tinted by how far the models disagree about each token."""
    st.subheader("What it writes", anchor=False)
    if model.tokenizer is None:
        st.caption("This model has no tokenizer.")
        return
    if "surgery prompt" not in st.session_state:
        st.session_state["surgery prompt"] = sample_text(model, QUESTION)
    box, button = st.columns([6, 1], vertical_alignment="bottom")
    prompt = box.text_input(
        "Prompt",
        key="surgery prompt",
        persist_state="session",
        help="Given as a question to models that can chat, and to others as it is.",
    )
    if button.button("Write", key="surgery write", icon=":material/play_arrow:", width="stretch"):
        st.session_state.pop(panel.TEXTS, None)
        with st.spinner("Both models are writing …"):
            texts = wb.surgery.compare_texts(model, child.model, asked(model, prompt), LENGTH, beside=child.beside)
        st.session_state[panel.TEXTS] = Written(prompt, child.model.hash, texts)
    written: Written | None = st.session_state.get(panel.TEXTS)
    if written is None or written.child != child.model.hash:
        return
    if written.prompt != prompt:
        st.caption(":material/info: The prompt has changed since this was written.")
    both = written.texts
    sides = ((both.before.tokens, both.kl, "Before"), (both.after.tokens, both.kl_own, "After"))
    for column, (tokens, kl, head) in zip(st.columns(2, gap="medium", border=True), sides, strict=True):
        with column:
            st.markdown(f"**{head}**")
            show_tokens(_pieces(model, tokens), kl)
    show_scale()


def asked(model: LanguageModel, prompt: str) -> str:
    """What the models are given: the prompt as a question where the model can chat, and as it is where not."""
    return model.chat_prompt(prompt) if getattr(model.tokenizer, "chat_template", None) else prompt


def _pieces(model: LanguageModel, tokens: Sequence[int]) -> list[str]:
    cutter = TextStreamer(model.to_text)
    return [cutter.add(token) for token in tokens]
