"""An attribution graph on the page: what is asked, the tracing, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from attribution import graph as attribution_graph
from attribution.asked import Asked, Found, load
from shared import background, snippets
from shared.tokens import plain

from workbench.figures.common import visible

if TYPE_CHECKING:
    from workbench.model import LanguageModel

KEPT = 0.98
"""Share of the influence whose nodes and edges are kept for the page."""
MEANINGS = {
    "latent": ("latents not traced further", "Latents whose own sources were not traced."),
    "mlp": ("other MLPs", "What MLPs write that have no transcoder."),
    "error": ("errors", "What MLPs write and their transcoders do not explain."),
    "embedding": ("embeddings", "The tokens themselves."),
    "bias": ("biases", "What is the same on every prompt."),
}


def begin(model: LanguageModel, asked: Asked) -> None:
    """Start tracing, if that has not been done."""
    task = caching.task(asked.key)
    if task is not None and not task.failed and not task.stopping:
        return
    if asked.other and not asked.token:
        raise ValueError("Name the token whose logit is explained, too, not only the one that is taken off.")
    loaded = load(model, asked)

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Found:
        import workbench as wb

        graph = wb.attribute(
            model,
            loaded,
            asked.prompt,
            asked.target,
            max_latents=asked.latents,
            mlps=asked.mlps,  # type: ignore[arg-type]
            progress=tell,
            cancel=cancelled,
        )
        return Found(graph.prune(KEPT, KEPT), max(graph.completeness()), len(graph.rows) - 1)

    caching.begin(asked.key, "Tracing", work, asked)


def show(model: LanguageModel, asked: Asked) -> None:
    """How far the tracing is, or the graph."""
    task = caching.task(asked.key)
    if task is None:
        return
    if not task.done:
        background.follow(asked.key)
        return
    if task.failed:
        background.show_failure(asked.key)
        return
    found: Found = task.result()
    if task.stopping:
        st.caption(":material/pause: Stopped early: fewer latents were traced than was asked for.")
    _numbers(found)
    attribution_graph.show(model, asked, found.graph)
    snippets.show(snippets.attribution(asked))


def _numbers(found: Found) -> None:
    """The target, and where the influence on it comes from in the end."""
    graph = found.graph
    explained, traced, exact = st.columns([3, 1, 1])
    explained.metric(
        plain(f"Logit of {visible(graph.target.label)}"),
        f"{graph.target.value:.3f}",
        help="Less the mean over all tokens, or the difference of two tokens.",
    )
    traced.metric("Latents traced", f"{found.traced:,}", help="Latents whose own sources are in the graph.")
    exact.metric(
        "Largest error of a sum",
        f"{found.completeness:.1e}",
        help="Relative difference between what a node read in the model and the sum of all its sources.",
    )
    said = ", ".join(
        f"{MEANINGS[kind][0]} {share:.0%}" for kind, share in graph.shares.items() if kind in MEANINGS and share >= 5e-3
    )
    st.caption(plain(f"Where the influence on it comes from in the end: {said}."))
