"""The fidelity of two dictionaries side by side: the request, the measurement, and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import caching
import pandas as pd
import streamlit as st
from shared import background, corpora, dictionaries, snippets

from compare import script
from workbench import figures
from workbench.core.text import counted, plain

if TYPE_CHECKING:
    from workbench.measures import Fidelity
    from workbench.model import LanguageModel

MEANINGS = {
    "loss_recovered": ("Loss recovered", "1: the model predicts as well as without it; 0: as with nothing."),
    "fvu": ("Not explained (FVU)", "Fraction of the variance that it does not explain; 0 is perfect."),
    "cosine": ("Cosine", "Cosine similarity of activation and reconstruction; 1 is perfect."),
    "kl": ("KL", "KL divergence of the predictions, in nats; 0 is perfect."),
    "ce_spliced": ("Cross-entropy through it", "Of the texts, in nats per token, with the dictionary spliced in."),
    "ce": ("Cross-entropy, plain", "The same without the dictionary."),
    "ce_zero": ("Cross-entropy, zeroed", "The same with zeros in place of the activation."),
    "l0": ("Active latents (L0)", "Mean number active on a token; fewer are easier to read."),
}


@dataclass(frozen=True)
class FidelityRequest:
    """Everything that a comparison depends on."""

    source: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    corpus: str
    tokens: int
    stamp: str
    """Changes when the model or a dictionary does."""

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the measurement's task."""
        return ("fidelity", self.source, *self.folders, self.corpus, str(self.tokens), self.stamp)


def begin(model: LanguageModel, request: FidelityRequest) -> None:
    """Start the measurement, unless it goes on or has ended with a result."""
    task = caching.task(request.key)
    if task is not None and not task.failed and not task.stopping:
        return
    loaded = [dictionaries.load(model, dictionaries.called(model, folder)) for folder in request.folders]

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> list[Fidelity]:
        import workbench as wb

        corpus = corpora.opened(request.corpus)
        return wb.measures.measure_fidelities(model, loaded, corpus, request.tokens, progress=tell, cancel=cancelled)

    caching.begin(request.key, "Measuring", work, request)


def show(request: FidelityRequest) -> None:
    """Draw the progress of the measurement, or its results."""
    task = background.finished(request.key, "Stopped before anything was measured.")
    if task is None:
        return
    results = task.result()
    stopped = "Stopped early. " if task.stopping else ""
    one = results[0]
    texts = counted(one.texts, "text")
    spans = (
        "Points are the measured values, lines 95% confidence intervals from a bootstrap over the texts."
        if one.texts > 1
        else "There are no confidence intervals for one text; take more."
    )
    st.caption(f"{stopped}Measured on {counted(one.tokens, 'token')} of {texts}. {spans}")
    names = [name.rsplit("/", 1)[-1] for name in request.names]
    figure = figures.fidelity_comparison(names, results)
    st.plotly_chart(figure, theme=None, key="fidelity", config={"displayModeBar": False})
    _table(names, results)
    snippets.show(script.fidelity(request.source, request.folders, request.corpus, request.tokens))


def _table(names: Sequence[str], results: Sequence[Fidelity]) -> None:
    rows = []
    for measure, (title, _) in MEANINGS.items():
        row = {"measure": title}
        for number, one in enumerate(results):
            low, high = one.intervals[measure]
            row |= {f"value {number}": f"{getattr(one, measure):.4g}", f"span {number}": f"{low:.4g} to {high:.4g}"}
        rows.append(row)
    dead = {"measure": "Dead latents"}
    for number, one in enumerate(results):
        dead |= {f"value {number}": f"{one.dead:.1%}", f"span {number}": ""}
    rows.append(dead)
    config = {"measure": st.column_config.TextColumn("Measure", width=185)}
    for number, name in enumerate(names):
        config[f"value {number}"] = st.column_config.TextColumn(name, width=140)
        config[f"span {number}"] = st.column_config.TextColumn("95%", width=135)
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, column_config=config, column_order=list(config), height=35 * 10 + 3
    )
    seen = f"Share that is active on none of these {counted(results[0].tokens, 'token')}; more tokens find fewer dead."
    meanings = [*MEANINGS.values(), ("Dead latents", seen)]
    st.caption("  \n".join(f"**{title}**: {plain(meaning)}" for title, meaning in meanings))
