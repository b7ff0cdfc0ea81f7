"""The probability of a word for each strength of one of the edits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st
from shared import snippets
from shared.edits import slider_of
from shared.waiting import one_sentence

import workbench as wb
from steer.prompt import AnswerRequest
from workbench import figures
from workbench.core.text import plain
from workbench.interventions.choices import strength_of
from workbench.interventions.protocol import feature_of

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind
    from workbench.measures.dose_response import DoseResponse
    from workbench.model import LanguageModel

POINTS = 17


@dataclass(frozen=True)
class Curve:
    """A measured curve with its request."""

    request: AnswerRequest
    varied: int
    response: DoseResponse


def show(model: LanguageModel, request: AnswerRequest) -> None:
    """Draw the widgets and the last curve; nothing where no edit has a strength."""
    choices = [number for number, one in enumerate(request.interventions) if strength(one) is not None]
    if not choices:
        return
    st.subheader("How much is enough?", anchor=False)
    st.caption("The probability of a word directly after the prompt, for each strength of one edit; the others stay.")
    which, word, reach, run = st.columns([3, 2, 3, 1.4], vertical_alignment="bottom")
    varied = which.selectbox(
        "Edit", choices, format_func=lambda number: str(request.interventions[number]), key="varied"
    )
    text = word.text_input("Word", " dog", key="word", persist_state="session", help="With its space in front.")
    one = request.interventions[varied]
    argument = strength_of(type(one))
    assert argument is not None
    name, far = type(one).__name__, slider_of(model, feature_of(one), argument).reach
    limits = reach.slider(
        "From … to", -far, far, (-far, far), format="%g", key=f"reach {name} {far:g}", persist_state="session"
    )
    if run.button("Measure", key="measure", icon=":material/show_chart:", width="stretch"):
        with one_sentence():
            _measure(model, request, varied, text, limits)
    if "curve" in st.session_state:
        _draw(st.session_state["curve"])


def strength(one: InterventionKind) -> str | None:
    """The name of the argument that holds an intervention's strength; None if it has none."""
    argument = strength_of(type(one))
    return None if argument is None else argument.name


def _measure(model: LanguageModel, request: AnswerRequest, varied: int, word: str, reach: tuple[float, float]) -> None:
    low, high = reach
    values = [round(low + (high - low) * step / (POINTS - 1), 6) for step in range(POINTS)]
    field = strength(request.interventions[varied])
    assert field is not None

    def make(value: float) -> list[InterventionKind]:
        edits = list(request.interventions)
        edits[varied] = replace(edits[varied], **{field: value})
        return edits

    bar = st.progress(0.0, text="Measuring …")

    def tell(share: float, what: str) -> None:
        bar.progress(share, text="Measuring …")

    response = wb.measures.dose_response(model, request.prompt(model), word, values, make, progress=tell)
    bar.empty()
    st.session_state["curve"] = Curve(request, varied, response)


def _draw(curve: Curve) -> None:
    one = curve.request.interventions[curve.varied]
    field = strength(one)
    title = f"{type(one).__name__} {field} of {feature_of(one) or 'the direction'}"
    start = "Asked" if curve.request.chat else "After"
    st.caption(f"{start}: {plain(curve.request.text)}")
    figure = figures.dose_curve(curve.response, at=getattr(one, field or ""), title=title)
    st.plotly_chart(figure, theme=None, key="dose", config={"displayModeBar": False})
    snippets.show(code(curve))


def code(curve: Curve) -> str:
    """A script that measures the same curve."""
    others = list(curve.request.interventions)
    field = strength(others[curve.varied])
    return (
        "import dataclasses\n"
        + snippets.opening(curve.request.source)
        + snippets.edit_list(others)
        + curve.request.prompt_code()
        + f"values = {curve.response.values!r}\n\n\n"
        "def make(value):\n"
        f"    changed = dataclasses.replace(edits[{curve.varied}], {field}=value)\n"
        f"    return [*edits[:{curve.varied}], changed, *edits[{curve.varied + 1}:]]\n\n\n"
        f"response = wb.measures.dose_response(model, prompt, {curve.response.word!r}, values, make)\n"
        'print("plain", response.plain)\n'
        "for value, logprob in zip(response.values, response.logprobs):\n"
        "    print(value, logprob)\n"
    )
