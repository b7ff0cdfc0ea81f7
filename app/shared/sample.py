"""A first text for a page, in tokens that the model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from workbench.model import LanguageModel

QUESTION = "What is your favourite animal?"
"""The first prompt of pages that ask a model a question."""
LENGTH = 24
"""Tokens that a model generates as its own first text."""


def knows(model: LanguageModel, text: str) -> bool:
    """Whether the text survives encoding and decoding by the model's tokenizer, in tokens that the model has."""
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if max(tokens, default=0) >= model.network.vocab_size:
        return False
    return model.tokenizer.decode(tokens, skip_special_tokens=True).strip() == text.strip()


def sample_text(model: LanguageModel, text: str) -> str:
    """The text; where the tokenizer can't write it, a text that the model generates."""
    if knows(model, text):
        return text
    kept = st.session_state.setdefault("own texts", {})
    if model.hash not in kept:
        special = set(model.tokenizer.all_special_ids)
        texts = model.token_texts(range(min(model.network.vocab_size, 1000)))
        opening = next(text.strip() for token, text in enumerate(texts) if token not in special and text.strip())
        length = min(LENGTH, model.network.n_ctx - 2)
        kept[model.hash] = opening + model.generate(opening, length, temperature=1.0).text
    return kept[model.hash]
