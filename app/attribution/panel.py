"""An attribution graph on the page: the tracing, its numbers, and the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background, snippets

from attribution import graph as attribution_graph
from attribution import script
from attribution.request import AttributionOutcome, AttributionRequest, load
from workbench.core.text import plain, visible

if TYPE_CHECKING:
    from workbench.model import LanguageModel

KEPT = 0.98
"""Share of the influence whose nodes and edges the page keeps."""
MEANINGS = {
    "latent": ("latents not traced further", "Latents whose own sources were not traced."),
    "mlp": ("other MLPs", "The outputs of MLPs without a transcoder."),
    "error": ("errors", "The part of MLPs' outputs that their transcoders do not explain."),
    "embedding": ("embeddings", "The tokens' embeddings."),
    "bias": ("biases", "The part that is the same on every prompt."),
}


def begin(model: LanguageModel, request: AttributionRequest) -> None:
    """Start the tracing, unless it goes on or has ended with a result."""
    task = caching.task(request.key)
    if task is not None and not task.failed and not task.stopping:
        return
    if request.other and not request.token:
        raise ValueError("Name the token whose logit is explained, too, not only the one that is subtracted.")
    loaded = load(model, request)

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> AttributionOutcome:
        import workbench as wb

        graph = wb.attribute(
            model,
            loaded,
            request.prompt,
            request.target,
            max_latents=request.latents,
            mlps=request.mlps,  # type: ignore[arg-type]
            progress=tell,
            cancel=cancelled,
        )
        return AttributionOutcome(graph.prune(KEPT, KEPT), max(graph.completeness()), len(graph.rows) - 1)

    caching.begin(request.key, "Tracing", work, request)


def show(model: LanguageModel, request: AttributionRequest) -> None:
    """Draw the progress of the tracing, or the graph."""
    task = background.finished(request.key)
    if task is None:
        return
    outcome: AttributionOutcome = task.result()
    if task.stopping:
        st.caption(":material/pause: Stopped early: fewer latents were traced than requested.")
    _numbers(outcome)
    _likelier(outcome)
    attribution_graph.show(model, request, outcome.graph)
    snippets.show(script.attribution(request, [f"{KEPT}, {KEPT}", attribution_graph.pruning()]))


def _numbers(outcome: AttributionOutcome) -> None:
    """Draw the target, and the kinds of nodes that the influence on it starts from."""
    graph = outcome.graph
    explained, traced, exact = st.columns([3, 1, 1])
    explained.metric(
        plain(f"Logit of {visible(graph.target.label)}"),
        f"{graph.target.value:.3f}",
        help="Less the mean over all tokens, or the difference of two tokens.",
    )
    traced.metric("Latents traced", f"{outcome.traced:,}", help="Latents whose own sources are in the graph.")
    exact.metric(
        "Largest error of a sum",
        f"{outcome.completeness:.1e}",
        help="Relative difference between a node's input in the model and the sum of all its sources.",
    )
    shares = ", ".join(
        f"{MEANINGS[kind][0]} {share:.0%}" for kind, share in graph.shares.items() if kind in MEANINGS and share >= 5e-3
    )
    st.caption(plain(f"Sources of the influence on it: {shares}."))


def _likelier(outcome: AttributionOutcome) -> None:
    """Say which token the model finds likelier than the one that was asked for, where there is one."""
    about = outcome.graph.provenance
    best, asked = about.get("likeliest"), about["target_tokens"]
    if best is None or not asked or best["token"] == asked[0]:
        return
    chance = about["target_probabilities"][0]
    st.info(
        plain(
            f"The model finds {visible(best['text'])} likelier here ({best['probability']:.1%}) than the token that "
            f"the graph explains ({chance:.1%})."
        ),
        icon=":material/info:",
    )
