"""The texts that the model generates before and after, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from shared.sample import QUESTION, sample_text
from shared.tokens import show_scale, show_tokens

import workbench as wb
from surgery import panel

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.surgery import Child
    from workbench.surgery.certificate.texts import Texts

LENGTH = 48


@dataclass(frozen=True)
class WrittenTexts:
    """The texts with the prompt and the child they belong to."""

    prompt: str
    child: str
    """Hash of the changed model."""
    texts: Texts


def show(model: LanguageModel, child: Child) -> None:
    """Draw a prompt, a button, and both texts, tinted by the KL divergence of the two models at each token."""
    st.subheader("Generated texts", anchor=False)
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
        help="Asked as a question where the model has a chat template, continued as it is where not.",
    )
    if button.button("Write", key="surgery write", icon=":material/play_arrow:", width="stretch"):
        st.session_state.pop(panel.TEXTS, None)
        with st.spinner("Both models are writing …"):
            text = full_prompt(model, prompt)
            texts = wb.surgery.compare_texts(model, child.model, text, LENGTH, beside=child.beside)
        st.session_state[panel.TEXTS] = WrittenTexts(prompt, child.model.hash, texts)
    written: WrittenTexts | None = st.session_state.get(panel.TEXTS)
    if written is None or written.child != child.model.hash:
        return
    if written.prompt != prompt:
        st.caption(":material/info: The prompt has changed since these texts were generated.")
    both = written.texts
    sides = ((both.before, both.kl, "Before"), (both.after, both.kl_own, "After"))
    for column, (text, kl, head) in zip(st.columns(2, gap="medium", border=True), sides, strict=True):
        with column:
            st.markdown(f"**{head}**")
            show_tokens(model.text_pieces(text.tokens, model.to_tokens(text.prompt)), kl)
    show_scale()


def full_prompt(model: LanguageModel, prompt: str) -> str:
    """The prompt in the model's chat template, or as it is for a model without one."""
    return model.chat_prompt(prompt) if getattr(model.tokenizer, "chat_template", None) else prompt
