"""A circuit put to the test: the task with all other heads at their means, and with the circuit's at theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from circuits.asked import METHODS, TRUTH, Asked, Found
from shared import background
from shared.tokens import plain

if TYPE_CHECKING:
    from workbench.circuits import TaskResult
    from workbench.model import LanguageModel


def show(model: LanguageModel, asked: Asked, found: Found) -> None:
    """Which heads are the circuit, and the task without the others, and without these."""
    st.subheader("The circuit alone", anchor=False)
    names = list(found.scores)
    if st.session_state.get("circuit of") not in names:
        st.session_state["circuit of"] = TRUTH if TRUTH in names else names[0]
    of, count, button = st.columns([2, 3, 1.5], vertical_alignment="bottom")
    name = of.selectbox("The highest heads by", names, format_func=METHODS.__getitem__, key="circuit of")
    score = found.scores[name].abs()
    total = score.numel()
    if not bool(score.any()):
        st.info("All heads score 0 by this method: it found nothing.", icon=":material/info:")
        return
    st.session_state["circuit size"] = min(st.session_state.get("circuit size", math.ceil(total / 10)), total)
    size = int(count.slider("How many", 0, total, key="circuit size"))
    order = score.flatten().argsort(descending=True, stable=True)[:size].tolist()
    heads = tuple(divmod(place, score.shape[1]) for place in sorted(order))
    key = (*asked.key, "ablated", name, str(size))
    if button.button("Take away", icon=":material/content_cut:", width="stretch", key="take away"):
        _begin(model, found, heads, key)
    lowest = score.flatten()[order].min() if order else math.inf
    tied = int((score >= lowest).sum()) - size
    if order and tied:
        st.caption(
            f"{tied} more heads score as much as the last of these; of equal ones those of lower layers are taken."
        )
    st.caption(plain(", ".join(f"{layer}.{head}" for layer, head in heads[:60]) + (" …" if size > 60 else "")))
    task = caching.task(key)
    if task is None:
        return
    if not task.done:
        background.follow(key)
        return
    if task.failed:
        background.show_failure(key)
        return
    alone, without = task.result()
    columns = st.columns(3)
    for column, title, done in zip(
        columns,
        ("The whole model", f"These {size} heads alone", f"All but these {size}"),
        (found.done, alone, without),
        strict=True,
    ):
        column.metric(title, f"{done.logit_difference:.2f}", help="log P(right) − log P(wrong), in nats.")
        column.caption(f"{done.accuracy:.0%} right, by chance {done.chance:.0%}")
    st.caption("Heads that are taken away have their mean over the corrupted prompts; MLPs stay as they are.")


def _begin(model: LanguageModel, found: Found, heads: tuple[tuple[int, int], ...], key: tuple[str, ...]) -> None:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> tuple[TaskResult, TaskResult]:
        import workbench as wb
        from workbench.circuits import keep_heads

        tell(0.0, "the circuit alone")
        alone = wb.circuits.evaluate_task(model, found.task, keep_heads(model, found.task, heads))
        tell(0.5, "all but the circuit")
        return alone, wb.circuits.evaluate_task(model, found.task, keep_heads(model, found.task, heads, others=False))

    caching.begin(key, "Taking away", work)
