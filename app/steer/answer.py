"""The plain and the edited text side by side, while they are generated and with their measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import snippets
from shared.tokens import show_scale, show_text, show_tokens

from steer import conversation
from steer.prompt import AnswerRequest
from workbench import figures
from workbench.core.text import plain
from workbench.measures.comparison import random_twins

if TYPE_CHECKING:
    from workbench.measures import Comparison
    from workbench.measures.comparison import Side
    from workbench.model import LanguageModel
    from workbench.model.generation import Generation


@dataclass
class Answer:
    """A request with its texts and their comparison."""

    request: AnswerRequest
    texts: list[str] = field(default_factory=list)
    """The texts as far as they are generated."""
    comparison: Comparison | None = None
    """None until all texts are generated and measured."""


def write(model: LanguageModel, request: AnswerRequest, stop: Any) -> None:
    """Generate the texts and draw them as they grow; the session keeps the answer even if the user stops it."""
    sides = 3 if request.control else 2
    answer = Answer(request, [""] * sides)
    stop.button("Stop", icon=":material/stop:", key="stop writing")
    above = st.container()
    with st.spinner("The model is writing …"):  # before the prompt is read, which takes a while on a long one
        steps = request.steps(model)
        with above:
            places = [column.empty() for column in _heads(model, request, sides)]
        while True:
            try:
                step = next(steps)
            except StopIteration as ended:
                answer.comparison = ended.value
                break
            st.session_state["answer"] = answer
            for side, piece in enumerate(step.pieces):
                answer.texts[side] += piece
                if piece:
                    show_text(answer.texts[side], places[side])
    st.session_state["answer"] = answer
    st.rerun()


def show(model: LanguageModel, answer: Answer, request: AnswerRequest) -> None:
    """Draw the texts with their measurements."""
    if answer.request != request:
        st.caption(":material/info: The settings have changed since this was generated; press Generate to update it.")
    columns = _heads(model, answer.request, len(answer.texts))
    both = answer.comparison
    if both is None:
        for column, text in zip(columns, answer.texts, strict=True):
            show_text(text, column)
        st.caption("Stopped before the end, so nothing is measured.")
        return
    with columns[0]:
        show_tokens(_pieces(model, both.baseline), both.kl)
        _numbers(both.baseline_perplexity, both.baseline_repetition)
        _offer(answer, 0)
    for number, (column, side) in enumerate(zip(columns[1:], both.sides, strict=True), 1):
        with column:
            show_tokens(_pieces(model, side.generation), side.kl_own)
            _numbers(side.perplexity, side.repetition, side)
            _offer(answer, number)
    show_scale()
    _changes(both)
    snippets.show(answer.request.code())


def _offer(answer: Answer, number: int) -> None:
    """Draw the button that goes on from a side's answer, in a chat."""
    if answer.request.chat and answer.request.earlier == conversation.turns():
        side = ("plain", "edited", "control")[number]
        conversation.offer(answer.request.text, answer.texts[number].strip(), side, number)


def _heads(model: LanguageModel, request: AnswerRequest, count: int) -> list[Any]:
    columns = st.columns(count, gap="medium", border=True)
    heads = ["Plain", "Edited"]
    if request.control:
        twins = random_twins(model, request.interventions, request.seed)
        heads.append(f"Control: {', '.join(dict.fromkeys(str(one.feature) for one in twins))}")
    for column, head in zip(columns, heads, strict=False):
        column.markdown(f"**{plain(head)}**", help="Drawn at random." if head.startswith("Control") else None)
    return columns


def _pieces(model: LanguageModel, written: Generation) -> list[str]:
    """The piece of text that each token adds."""
    return model.text_pieces(written.tokens, model.to_tokens(written.prompt))


def _numbers(perplexity: float, repetition: float, side: Side | None = None) -> None:
    with st.container(horizontal=True, gap="small"):
        if side is not None:
            mean = sum(side.kl) / len(side.kl) if side.kl else math.nan
            st.metric(
                "Mean KL",
                _number(mean),
                width="content",
                help="KL divergence of the edited model's predictions from the plain model's, on the tokens of the "
                "plain text, in nats. 0: no difference.",
            )
        st.metric(
            "Perplexity",
            _number(perplexity),
            width="content",
            help="Of this text under the plain model. 1: certain of every token; incoherent text has a high one.",
        )
        st.metric(
            "Repeats",
            "–" if math.isnan(repetition) else f"{repetition:.0%}",
            width="content",
            help="Share of the text's three-token sequences that occurred in it before.",
        )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _changes(both: Comparison) -> None:
    if not both.top_changes:
        st.info("The edits change nothing here: every token has the same probability with and without them.")
        return
    st.subheader("Tokens whose probability moved most", anchor=False)
    st.caption("Both models read the plain text; the bars are means over its positions.")
    st.plotly_chart(figures.token_changes(both.top_changes), theme=None, key="moved", config={"displayModeBar": False})
