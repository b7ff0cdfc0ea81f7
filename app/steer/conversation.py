"""The turns of a conversation before the prompt: each a question, and the answer that the user goes on from."""

from __future__ import annotations

import streamlit as st
from shared.tokens import show_text

from workbench.core.text import plain

TURNS = "turns"
"""The key of the turns in the session; they belong to a model."""

Turn = tuple[str, str]
"""A question and its answer."""


def turns() -> tuple[Turn, ...]:
    """The turns so far."""
    return tuple(st.session_state.get(TURNS, ()))


def messages(earlier: tuple[Turn, ...], text: str) -> str | list[dict[str, str]]:
    """What `chat_prompt` takes for the next question."""
    if not earlier:
        return text
    said = [
        {"role": role, "content": words}
        for turn in earlier
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*said, {"role": "user", "content": text}]


def show() -> None:
    """Draw the turns so far, and a button that drops them."""
    if not turns():
        return
    with st.container(border=True):
        for question, answer in turns():
            for who, words in (("You", question), ("Model", answer)):
                st.caption(plain(who))
                show_text(words)
        st.button("New conversation", key="new conversation", icon=":material/restart_alt:", on_click=_forget)


def offer(question: str, answer: str, side: str, number: int) -> None:
    """Draw a button that takes an answer as the model's turn; the next question follows it on every side."""
    st.button(
        "Reply to this",
        key=f"reply {number}",
        icon=":material/reply:",
        on_click=_reply,
        args=(question, answer),
        help=f"The {side} answer becomes part of the conversation; both models read it before the next one.",
    )


def _reply(question: str, answer: str) -> None:
    st.session_state[TURNS] = [*turns(), (question, answer)]
    st.session_state["prompt"] = ""
    st.session_state.pop("answer", None)


def _forget() -> None:
    st.session_state.pop(TURNS, None)
