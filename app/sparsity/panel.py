"""The measurement of activation sparsity, in the background, for one model or two: its request and latest results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from shared import background, corpora, snippets

from workbench import figures
from workbench.core.text import counted, plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.sparsity import Sparsity

INCREASES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Allowed increases of perplexity, as shares; measured together, since each starts from the others' results."""
EVERY = 2.0
"""Seconds between two draws of a measurement that goes on."""


@dataclass(frozen=True)
class SparsityRequest:
    """Everything that a measurement depends on."""

    source: str
    hash: str
    """Of the model, with its device and type."""
    corpus: str
    tokens: int

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the measurement's task."""
        return ("sparsity", self.source, self.hash, self.corpus, str(self.tokens))


@dataclass
class Answers:
    """The latest results of a measurement that goes on, one for each of `INCREASES`."""

    latest: list[Sparsity] = field(default_factory=list)


def begin(model: LanguageModel, request: SparsityRequest) -> None:
    """Start the measurement, unless it goes on or has ended with a result."""
    task = caching.task(request.key)
    if task is not None and not task.failed and not task.stopping:
        return
    answers = Answers()

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> list[Sparsity]:
        import workbench as wb

        def on_update(results: list[Sparsity]) -> None:
            answers.latest = results

        corpus = corpora.opened(request.corpus)
        return wb.sparsity.measure_sparsities(
            model, corpus, list(INCREASES), request.tokens, progress=tell, cancel=cancelled, on_update=on_update
        )

    caching.begin(request.key, "Measuring", work, answers)


def known(request: SparsityRequest) -> list[Sparsity]:
    """The latest results of a measurement, one for each of `INCREASES`; empty before the first."""
    task = caching.task(request.key)
    if task is None:
        return []
    return task.result() if task.done and not task.failed else task.about.latest


def show(requests: Sequence[SparsityRequest], p: float) -> None:
    """Draw the progress of the measurements and their latest results at `p`."""
    going = False
    for one in requests:
        task = caching.task(one.key)
        if task is None:
            continue
        if not task.done:
            going = True
            background.follow(one.key)
        elif task.failed and not background.show_failure(one.key):
            st.info("Stopped before anything was measured.", icon=":material/pause:")

    @st.fragment(run_every=EVERY if going else None)
    def draw_latest() -> None:
        measured = [(one, results) for one in requests if (results := known(one))]
        if measured:
            _draw([one for one, _ in measured], [results[INCREASES.index(p)] for _, results in measured])

    draw_latest()


def _draw(requests: Sequence[SparsityRequest], results: Sequence[Sparsity]) -> None:
    for column, one, result in zip(st.columns(len(requests)), requests, results, strict=True):
        with column:
            _headline(one, result, named=len(requests) > 1)
    names = [short(one.source) for one in requests]
    left, right = st.columns(2)
    left.markdown("**By layer**")
    figure = figures.sparsity_by_layer(names, [result.reported for result in results])
    left.plotly_chart(figure, theme=None, key="sparsity layers", config={"displayModeBar": False})
    right.markdown("**The price**, for three ways of choosing neurons")
    figure = figures.sparsity_price(names, results)
    right.plotly_chart(figure, theme=None, key="sparsity price", config={"displayModeBar": False})
    st.caption(
        "PPL-p%: each layer has its own threshold, set so that the same share of each layer's output is left out. "
        "One threshold: the same for all layers. Top-k: the same number of neurons for every token."
    )
    for one, result in zip(requests, results, strict=True):
        _table(result, short(one.source) if len(requests) > 1 else "")
    snippets.show(code(requests, results[0].asked))


def _headline(one: SparsityRequest, result: Sparsity, named: bool) -> None:
    """Draw the result's main numbers and the texts they were measured on."""
    if named:
        st.markdown(f"**{plain(short(one.source))}**")
    left, middle, right = st.columns(3)
    low, high = result.reported.intervals["sparsity"]
    left.metric("Neurons left out", f"{result.sparsity:.1%}", help=f"95% confidence interval {low:.1%} to {high:.1%}.")
    middle.metric("Perplexity rises by", f"{result.ppl_increase:.2%}", help="On the texts that thresholds are set on.")
    low, high = result.reported.intervals["ppl_increase"]
    rises = f"95% confidence interval {low:+.2%} to {high:+.2%}."
    right.metric("On other texts by", f"{result.reported.ppl_increase:.2%}", help=rises)
    if result.early:
        st.caption(f"An early result, from {result.calibrated.tokens:,} tokens; more tokens follow.")
    else:
        texts = f"{counted(result.reported.tokens, 'token')} of {counted(result.reported.texts, 'text')}"
        st.caption(
            f"Thresholds set on {result.calibrated.tokens:,} tokens, reported on {texts}. CETT {result.cett:.3f}; "
            f"{result.passes:.1f} passes of the model over all texts for all five p."
        )
        for sentence in result.warnings:
            st.warning(plain(sentence), icon=":material/warning:")


def _table(result: Sparsity, name: str) -> None:
    """Draw all measures side by side."""
    rows = [("PPL-p%", result.calibrated, result.reported)]
    rows += [(figures.sparsity.MEASURES[key][0], one.calibrated, one.reported) for key, one in result.baselines.items()]
    frame = pd.DataFrame(
        {
            "measure": [f"{name}: {label}" if name else label for label, _, _ in rows],
            "left out": [f"{other.sparsity:.1%}" for _, _, other in rows],
            "span": ["{:.1%} to {:.1%}".format(*other.intervals["sparsity"]) for _, _, other in rows],
            "rise": [f"{first.ppl_increase:+.2%}" for _, first, _ in rows],
            "rise on others": [f"{other.ppl_increase:+.2%}" for _, _, other in rows],
            "rise span": ["{:+.2%} to {:+.2%}".format(*other.intervals["ppl_increase"]) for _, _, other in rows],
        }
    )
    config: dict[str, Any] = {
        "measure": st.column_config.TextColumn("Measure", width=240),
        "left out": st.column_config.TextColumn("Neurons left out", width=120),
        "span": st.column_config.TextColumn("95%", width=140),
        "rise": st.column_config.TextColumn("Perplexity", width=100, help="On the texts that settings are chosen on."),
        "rise on others": st.column_config.TextColumn("On other texts", width=110),
        "rise span": st.column_config.TextColumn("95%", width=150),
    }
    st.dataframe(frame, hide_index=True, column_config=config, height=35 * (len(frame) + 1) + 3)


def short(source: str) -> str:
    """The model's name without its folder."""
    return source.rstrip("/").rsplit("/", 1)[-1]


def code(requests: Sequence[SparsityRequest], p: float) -> str:
    """A script that makes the same measurements."""
    parts = [snippets.opening(requests[0].source) + f"corpus = wb.Corpus.load({requests[0].corpus!r})\n"]
    for number, one in enumerate(requests):
        if number:
            parts.append(f"model = {snippets.loaded(one.source)}\n")
        parts.append(
            f"for one in wb.sparsity.measure_sparsities(model, corpus, {list(INCREASES)!r}, tokens={one.tokens}):\n"
            "    print(f'{one.asked:.1%}', f'{one.sparsity:.4f}', f'{one.ppl_increase:.5f}', one.reported.intervals)\n"
            "    print('   ', {name: round(baseline.sparsity, 4) for name, baseline in one.baselines.items()})\n"
            f"    if one.asked == {p!r}:\n"
            "        sparse = wb.sparsity.with_sparsity(model, one)  # the model that runs so\n"
        )
    return "".join(parts)
