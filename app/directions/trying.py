"""A direction while the model writes: beside the plain text and a random direction of the same length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import caching
import streamlit as st
import torch
from shared.sample import sample_text
from shared.tokens import show_text
from shared.waiting import begin_again, wait_for

import workbench as wb
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.directions import Direction
    from workbench.measures import Comparison
    from workbench.model import LanguageModel

PROMPT = "When I came home, the old man"
WRITTEN = "direction written"
WHAT = "Writing with it, without it, and with a random one"
LENGTH = 32


@dataclass(frozen=True)
class Tried:
    """What the three sides wrote, and for which settings."""

    key: tuple[str, ...]
    texts: tuple[str, str, str]
    """Plain, along the direction, along a random one."""
    kl: tuple[float, float]
    """The mean KL of the two edited sides on the plain text, in nats."""


def prompt() -> str:
    """The text that is gone on with."""
    return st.session_state.get("direction prompt", PROMPT)


def show(model: LanguageModel, direction: Direction) -> wb.Steer:
    """Draw the strength and the three texts; returns the edit."""
    st.subheader("What it does", anchor=False)
    words, amounts = st.columns([3, 2], gap="medium")
    first = sample_text(model, PROMPT)
    text = words.text_input("The model goes on from", first, key="direction prompt", persist_state="session")
    share = amounts.slider(
        "Strength",
        -2.0,
        2.0,
        0.5,
        0.05,
        key="direction strength",
        persist_state="session",
        help="In natural strengths: 1 moves the mean of one side's texts to that of the other.",
    )
    edit = wb.Steer.along(direction, share * direction.strength)
    ((name, vector),) = direction.vectors.items()
    key = ("direction texts", caching.as_placed(model), text, name, str(edit.amount), str(hash(edit.direction)))
    wanted = st.button("Write", icon=":material/play_arrow:", key="write along direction")
    if wanted:
        begin_again(WHAT)

        def work(tell: caching.Callable) -> Tried:
            return _tried(model, text, edit, vector, key)

        st.session_state[WRITTEN] = wait_for(lambda: caching.lens_reading(key, work), WHAT)
    written: Tried | None = st.session_state.get(WRITTEN)
    if written is not None:
        if written.key != key:
            st.caption(":material/info: The settings have changed since this was written; press Write.")
        _draw(written)
    return edit


def random_edit(edit: wb.Steer, vector: torch.Tensor) -> wb.Steer:
    """The same amount along a random direction of the same length."""
    drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(0))
    other = drawn / drawn.norm() * vector.norm().cpu()
    return wb.Steer.along(edit.hook_point or "", other, edit.amount)


def _tried(model: LanguageModel, text: str, edit: wb.Steer, vector: torch.Tensor, key: tuple[str, ...]) -> Tried:
    length = max(1, min(LENGTH, model.network.n_ctx - model.to_tokens(text).shape[1]))
    along, beside = (wb.compare(model, text, [one], length) for one in (edit, random_edit(edit, vector)))
    return Tried(key, (along.baseline.text, along.edited.text, beside.edited.text), (_mean(along), _mean(beside)))


def _mean(both: Comparison) -> float:
    return sum(both.kl) / len(both.kl) if both.kl else 0.0


def _draw(written: Tried) -> None:
    heads = [
        "Plain",
        f"Along it, KL {written.kl[0]:.3g} nats",
        f"Along a random direction, KL {written.kl[1]:.3g} nats",
    ]
    for column, head, text in zip(st.columns(3, gap="medium", border=True), heads, written.texts, strict=True):
        column.markdown(f"**{plain(head)}**")
        with column:
            show_text(text, st.empty())
