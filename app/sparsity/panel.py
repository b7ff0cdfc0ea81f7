"""Measuring activation sparsity in the background, for one model or two: what was asked, and what is known by now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from shared import background, snippets
from shared.tokens import plain

from workbench import figures

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.sparsity import Sparsity

INCREASES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""By what shares perplexity may rise; all are measured together, since each begins with what the others have shown."""
EVERY = 2.0
"""Seconds between looks at a measurement that goes on."""


@dataclass(frozen=True)
class Asked:
    """All that a measurement depends on."""

    source: str
    hash: str
    """Of the model."""
    corpus: str
    tokens: int

    @property
    def key(self) -> tuple[str, ...]:
        """Names the measuring."""
        return ("sparsity", self.source, self.hash, self.corpus, str(self.tokens))


@dataclass
class Answers:
    """What a measurement that goes on has found so far, one result for each of `INCREASES`."""

    latest: list[Sparsity] = field(default_factory=list)


def begin(model: LanguageModel, asked: Asked) -> None:
    """Start measuring, if that has not been done."""
    task = caching.task(asked.key)
    if task is not None and not task.failed and not task.stopping:
        return
    answers = Answers()

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> list[Sparsity]:
        import workbench as wb

        def on_update(found: list[Sparsity]) -> None:
            answers.latest = found

        corpus = wb.Corpus.load(asked.corpus)
        return wb.sparsity.measure_sparsities(
            model, corpus, list(INCREASES), asked.tokens, progress=tell, cancel=cancelled, on_update=on_update
        )

    caching.begin(asked.key, "Measuring", work, answers)


def known(asked: Asked) -> list[Sparsity]:
    """What is known of a measurement by now; empty where nothing is."""
    task = caching.task(asked.key)
    if task is None:
        return []
    return task.result() if task.done and not task.failed else task.about.latest


def show(asked: Sequence[Asked], p: float) -> None:
    """How far the measurements are, and what they have found at `p` by now."""
    going = False
    for one in asked:
        task = caching.task(one.key)
        if task is None:
            continue
        if not task.done:
            going = True
            background.follow(one.key)
        elif task.failed and not background.show_failure(one.key):
            st.info("Stopped before anything was measured.", icon=":material/pause:")

    @st.fragment(run_every=EVERY if going else None)
    def results() -> None:
        there = [(one, found) for one in asked if (found := known(one))]
        if there:
            _draw([one for one, _ in there], [found[INCREASES.index(p)] for _, found in there])

    results()


def _draw(asked: Sequence[Asked], results: Sequence[Sparsity]) -> None:
    for column, one, found in zip(st.columns(len(asked)), asked, results, strict=True):
        with column:
            _headline(one, found, named=len(asked) > 1)
    names = [short(one.source) for one in asked]
    left, right = st.columns(2)
    left.markdown("**By layer**")
    figure = figures.sparsity_by_layer(names, [found.reported for found in results])
    left.plotly_chart(figure, theme=None, key="sparsity layers", config={"displayModeBar": False})
    right.markdown("**The price**, for three ways of choosing neurons")
    figure = figures.sparsity_price(names, results)
    right.plotly_chart(figure, theme=None, key="sparsity price", config={"displayModeBar": False})
    st.caption(
        "PPL-p%: each layer has its own threshold, set so that what is left out is the same share of each layer's "
        "output. One threshold: the same for all layers. Top-k: the same number of neurons for every token."
    )
    for one, found in zip(asked, results, strict=True):
        _table(found, short(one.source) if len(asked) > 1 else "")
    snippets.show(code(asked, results[0].asked))


def _headline(one: Asked, found: Sparsity, named: bool) -> None:
    """The answer, and what it was measured on."""
    if named:
        st.markdown(f"**{plain(short(one.source))}**")
    left, middle, right = st.columns(3)
    low, high = found.reported.intervals["sparsity"]
    left.metric("Neurons left out", f"{found.sparsity:.1%}", help=f"95% confidence interval {low:.1%} to {high:.1%}.")
    middle.metric("Perplexity rises by", f"{found.ppl_increase:.2%}", help="On the texts that thresholds are found on.")
    low, high = found.reported.intervals["ppl_increase"]
    rises = f"95% confidence interval {low:+.2%} to {high:+.2%}."
    right.metric("On other texts by", f"{found.reported.ppl_increase:.2%}", help=rises)
    if found.early:
        st.caption(f"An early answer, from {found.calibrated.tokens:,} tokens; it is being sharpened.")
    else:
        texts = f"{found.reported.tokens:,} tokens of {found.reported.texts:,} texts"
        st.caption(
            f"Thresholds found on {found.calibrated.tokens:,} tokens, reported on {texts}. CETT {found.cett:.3f}; "
            f"{found.passes:.1f} passes of the model over all texts for all five p."
        )
        for sentence in found.warnings:
            st.warning(plain(sentence), icon=":material/warning:")


def _table(found: Sparsity, name: str) -> None:
    """All measures side by side."""
    rows = [("PPL-p%", found.calibrated, found.reported)]
    rows += [(figures.sparsity.MEASURES[key][0], one.calibrated, one.reported) for key, one in found.baselines.items()]
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
        "rise": st.column_config.TextColumn("Perplexity", width=100, help="On the texts that settings are found on."),
        "rise on others": st.column_config.TextColumn("On other texts", width=110),
        "rise span": st.column_config.TextColumn("95%", width=150),
    }
    st.dataframe(frame, hide_index=True, column_config=config, height=35 * (len(frame) + 1) + 3)


def short(source: str) -> str:
    """A model's name without its folder."""
    return source.rstrip("/").rsplit("/", 1)[-1]


def code(asked: Sequence[Asked], p: float) -> str:
    """A script that measures the same."""
    parts = [snippets.opening(asked[0].source) + f"corpus = wb.Corpus.load({asked[0].corpus!r})\n"]
    for number, one in enumerate(asked):
        if number:
            parts.append(f"model = wb.load_model({'' if one.source == snippets.DEFAULT else repr(one.source)})\n")
        parts.append(
            f"for one in wb.sparsity.measure_sparsities(model, corpus, {list(INCREASES)!r}, tokens={one.tokens}):\n"
            "    print(f'{one.asked:.1%}', f'{one.sparsity:.4f}', f'{one.ppl_increase:.5f}', one.reported.intervals)\n"
            "    print('   ', {name: round(baseline.sparsity, 4) for name, baseline in one.baselines.items()})\n"
            f"    if one.asked == {p!r}:\n"
            "        sparse = wb.sparsity.with_sparsity(model, one)  # the model that runs so\n"
        )
    return "".join(parts)
