"""One training: its curves, live while it goes on, and the next steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background, dictionaries, indexing, pages, session, snippets
from shared.waiting import one_sentence

from train import runs, script
from train.runs import Run
from workbench import figures
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel

EVERY = 2.0
"""Seconds between two draws of the curves."""


def show(model: LanguageModel, run: Run) -> None:
    """Draw the training in a folder."""
    st.subheader(plain(run.folder.name), anchor=False)
    if run.request is not None:
        st.caption(_summary(run))
    going = runs.current()
    if going is not None and going.folder == run.folder:
        background.follow(runs.KEY)
        _live(run)
    else:
        _state(model, run)
        _curves(run)
    if run.request is not None and run.request.reads in model.hook_points:
        snippets.show(script.training(st.session_state["source"], model, run.request))
    if run.finished:
        _next(model, run)


@st.fragment(run_every=EVERY)
def _live(run: Run) -> None:
    """Draw the numbers and curves, again every few seconds while the training goes on."""
    _curves(run)


def _summary(run: Run) -> str:
    request = run.request
    assert request is not None
    settings = ", ".join(f"{name} {value:,g}" for name, value in request.settings.items())
    where = request.reads if request.reads == request.writes else f"{request.reads} → {request.writes}"
    text = f"{request.kind.replace('_', ' ')} ({settings}) at {where}, {request.tokens:,} tokens of {request.corpus}"
    return plain(text)


def _state(model: LanguageModel, run: Run) -> None:
    """Draw whether the training stopped or failed, and the button that resumes it."""
    task = caching.task(runs.KEY)
    mine = task is not None and task.about is not None and task.about.folder == run.folder
    if run.finished:
        return
    if not (mine and background.show_failure(runs.KEY)):
        st.info("This training has stopped before its end and can be resumed.", icon=":material/pause:")
    if run.request is None:
        st.caption("It was started by a script; the same call resumes it.")
        return
    busy = runs.current()
    if st.button(
        "Go on",
        type="primary",
        icon=":material/play_arrow:",
        key="resume training",
        disabled=busy is not None,
        help=f"{plain(busy.name)} is being trained; one training goes on at a time." if busy else None,
    ):
        with one_sentence():
            runs.begin(model, run.request)
            st.rerun()


MEASURES = {
    "fvu": (
        "Not explained (FVU)",
        ".3f",
        "Fraction of the activations' variance that the dictionary does not explain. 0 is perfect.",
    ),
    "ce": ("Cross-entropy", ".3f", "Of the next token, in nats."),
    "accuracy": ("Accuracy", ".1%", "How often the likeliest next token is the right one."),
    "l0": ("Active (L0)", ".1f", "Active latents per token."),
    "dead": ("Dead", ".1%", "Active on none of the last 250,000 tokens; Compare counts on its own."),
}


def _curves(run: Run) -> None:
    history = run.history
    if not history:
        st.caption("Nothing is measured yet: the texts are read first.")
        return
    last = history[-1]
    with st.container(horizontal=True, gap="large"):
        st.metric("Tokens", f"{last['tokens']:,.0f}", width="content")
        for name, (title, form, help) in MEASURES.items():
            if last.get(name) is not None:  # a model's training has others than a dictionary's
                st.metric(title, format(last[name], form), width="content", help=help)
        st.metric(
            "Speed",
            f"{last['tokens'] / max(last['seconds'], 1e-9):,.0f} /s",
            width="content",
            help="Tokens per second.",
        )
    figure = figures.training_curves(history, run.request.tokens if run.request else None)
    st.plotly_chart(figure, theme=None, key=f"curves {run.folder.name}", config={"displayModeBar": False})


def _next(model: LanguageModel, run: Run) -> None:
    """Draw the next step for a trained dictionary: its index, or the link to Browse."""
    folder = run.folder.absolute()
    one = next((one for one in dictionaries.known() if dictionaries.place(one) == folder), None)
    if one is None:
        return
    if complaint := dictionaries.trouble(model, one):
        st.caption(plain(complaint))
        return
    if one.indexed:
        st.success("It is trained and has an index.", icon=":material/check:")
        if st.button("Open in Browse", type="primary", icon=":material/search:", key="open in browse"):
            st.session_state["dictionary"] = one.name
            session.open_feature(None)
            st.switch_page(pages.script("browse"))
    else:
        st.success(
            "It is trained. An index makes its latents searchable and gives them examples.", icon=":material/check:"
        )
        indexing.begin(model, one)
