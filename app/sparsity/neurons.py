"""Neurons that are on always, never, or on one kind of token; and the cost of running only some groups of neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from shared import background, corpora, snippets

from sparsity.panel import SparsityRequest

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.sparsity import Sparsity
    from workbench.sparsity.groups import Routed
    from workbench.sparsity.neurons import NeuronActivity

GROUPS = 16
PICKED = (4, 8, 12)
"""Numbers of groups that are run."""
ROWS = 200
WAYS = {
    "linear": ("active together", "a linear map of the MLP's input"),
    "random": ("drawn at random", "a linear map of the MLP's input"),
    "oracle": ("active together", "the contributions, which need the whole layer"),
}
"""The comparisons: which neurons form a group, and what the router reads."""


@dataclass(frozen=True)
class NeuronsOutcome:
    """The neurons' activity, and the cost of routing."""

    activity: NeuronActivity
    routed: dict[str, list[Routed]]
    """By `WAYS`, for each of `PICKED`."""


def show(model: LanguageModel, request: SparsityRequest, result: Sparsity) -> None:
    """Draw the button, the progress, or the outcome."""
    st.subheader("Which neurons?", anchor=False)
    key = ("sparsity neurons", *request.key[1:], str(result.asked))
    task = caching.task(key)
    if task is None or task.failed:
        if task is not None:
            background.show_failure(key)
        st.caption(
            "Counts the neurons that are on always, never, or on one kind of token only. Measures perplexity where "
            f"each layer's neurons form {GROUPS} groups and a router picks a few of them for each token."
        )
        if st.button("Look at the neurons", icon=":material/grid_view:", key="look at neurons", disabled=result.early):
            _begin(model, request, result, key)
            st.rerun()
        return
    if not task.done:
        background.follow(key)
        return
    _draw(task.result(), request, result)


def _begin(model: LanguageModel, request: SparsityRequest, result: Sparsity, key: tuple[str, ...]) -> None:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> NeuronsOutcome:
        import workbench as wb

        done = [0]
        # positions: the activity, two groupings, and for each way a plain pass and one for each number of groups
        total = request.tokens * (3 + 0.5 * len(WAYS) * (1 + len(PICKED)))

        def on_batch(positions: int) -> None:
            if cancelled():
                raise wb.sparsity.SparsityError("Stopped.")
            done[0] += positions
            tell(min(done[0] / total, 0.99), "Reading the neurons")

        corpus = corpora.opened(request.corpus)
        first, second = corpus.split(0.5)
        activity = wb.sparsity.neuron_activity(model, result, corpus, request.tokens, progress=lambda *_: on_batch(0))
        done[0] = request.tokens
        groups = {
            by: wb.sparsity.group_neurons(model, result, first, GROUPS, request.tokens, by=by, on_batch=on_batch)
            for by in ("coactivation", "random")
        }
        routed = {}
        for way in WAYS:
            grouping = groups["random" if way == "random" else "coactivation"]
            router = "oracle" if way == "oracle" else "linear"
            half = max(request.tokens // 2, 2)
            routed[way] = wb.sparsity.measure_routing(
                model, grouping, second, PICKED, half, router=router, on_batch=on_batch
            )
        return NeuronsOutcome(activity, routed)

    caching.begin(key, "Reading the neurons", work)


def _draw(outcome: NeuronsOutcome, request: SparsityRequest, result: Sparsity) -> None:
    activity = outcome.activity
    left, middle, right = st.columns(3)
    pure = activity.one_kind()
    left.metric("Always on", f"{float(activity.always().float().mean()):.1%}", help="On 99.9% of the tokens or more.")
    middle.metric("Never on", f"{float(activity.never().float().mean()):.1%}", help="On none of these tokens.")
    right.metric("On one kind of token", f"{len(pure):,}", help="At least 90% of their activity is on one kind.")
    st.caption(f"Counted on {activity.tokens:,} tokens; a neuron is on where its contribution reaches the threshold.")
    frame = pd.DataFrame(
        {
            "neuron": [str(feature) for feature, _, _, _ in pure[:ROWS]],
            "kind": [kind for _, kind, _, _ in pure[:ROWS]],
            "share": [share for _, _, share, _ in pure[:ROWS]],
            "rate": [rate for _, _, _, rate in pure[:ROWS]],
        }
    )
    if len(frame):
        config: dict[str, Any] = {
            "neuron": st.column_config.TextColumn("Neuron", width=170),
            "kind": st.column_config.TextColumn("Kind of token", width=150),
            "share": st.column_config.NumberColumn("Of its activity", format="percent", width=130),
            "rate": st.column_config.NumberColumn("On, of all tokens", format="percent", width=140),
        }
        st.dataframe(frame, hide_index=True, column_config=config, height=35 * (min(len(frame), 8) + 1) + 3)
    st.markdown(f"**Groups**: each layer's neurons form {GROUPS} groups of equal size; every token runs a few of them")
    rows = [
        {
            "groups": WAYS[way][0],
            "router": WAYS[way][1],
            "picked": one.picked,
            "saved": one.saved,
            "rise": one.outcome.ppl_increase,
        }
        for way, several in outcome.routed.items()
        for one in several
    ]
    config = {
        "groups": st.column_config.TextColumn("Neurons of a group are", width=170),
        "router": st.column_config.TextColumn("The router reads", width=310),
        "picked": st.column_config.NumberColumn("Groups run", width=100),
        "saved": st.column_config.NumberColumn("MLP work saved", format="percent", width=130),
        "rise": st.column_config.NumberColumn("Perplexity rises by", format="percent", width=150),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, height=35 * (len(rows) + 1) + 3)
    snippets.show(code(request, result))


def code(request: SparsityRequest, result: Sparsity) -> str:
    """A script that computes the same."""
    limits = [float(f"{one:.6g}") for one in result.thresholds]
    return snippets.opening(request.source) + (
        f"corpus = wb.Corpus.load({request.corpus!r})\n"
        f"thresholds = {limits!r}\n"
        f"activity = wb.sparsity.neuron_activity(model, thresholds, corpus, tokens={request.tokens})\n"
        "print(float(activity.always().float().mean()), float(activity.never().float().mean()))\n"
        "for neuron, kind, share, rate in activity.one_kind()[:20]:\n"
        "    print(neuron, kind, round(share, 3), round(rate, 5))\n\n"
        "first, second = corpus.split(0.5)\n"
        f"groups = wb.sparsity.group_neurons(model, thresholds, first, groups={GROUPS}, tokens={request.tokens})\n"
        f"picked, tokens = {list(PICKED)!r}, {max(request.tokens // 2, 2)}\n"
        "for one in wb.sparsity.measure_routing(model, groups, second, picked, tokens=tokens):\n"
        "    print(one.picked, round(one.saved, 3), one.outcome.ppl_increase)\n"
    )
