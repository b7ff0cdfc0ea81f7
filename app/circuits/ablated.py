"""The test of a circuit: the task with all other heads mean-ablated, and with the circuit's heads mean-ablated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import caching
import streamlit as st
from shared import background

from circuits.request import METHODS, TRUTH, CircuitOutcome, CircuitRequest
from workbench.core.text import counted, plain

if TYPE_CHECKING:
    from workbench.circuits import TaskResult
    from workbench.model import LanguageModel


def show(model: LanguageModel, request: CircuitRequest, outcome: CircuitOutcome) -> None:
    """Draw the chooser of the circuit, and the task's results with the circuit alone and without it."""
    st.subheader("The circuit alone", anchor=False)
    names = list(outcome.scores)
    if st.session_state.get("circuit of") not in names:
        st.session_state["circuit of"] = TRUTH if TRUTH in names else names[0]
    of, count, button = st.columns([2, 3, 1.5], vertical_alignment="bottom")
    name = of.selectbox("The highest heads by", names, format_func=METHODS.__getitem__, key="circuit of")
    score = outcome.scores[name].abs()
    total = score.numel()
    if not bool(score.any()):
        st.info("All heads score 0 by this method.", icon=":material/info:")
        return
    st.session_state["circuit size"] = min(st.session_state.get("circuit size", math.ceil(total / 10)), total)
    size = int(count.slider("How many", 0, total, key="circuit size"))
    order = score.flatten().argsort(descending=True, stable=True)[:size].tolist()
    heads = tuple(divmod(place, score.shape[1]) for place in sorted(order))
    key = (*request.key, "ablated", name, str(size))
    if button.button("Ablate", icon=":material/content_cut:", width="stretch", key="take away"):
        _begin(model, outcome, heads, key)
    lowest = score.flatten()[order].min() if order else math.inf
    tied = int((score >= lowest).sum()) - size
    if order and tied:
        st.caption(
            f"{tied} more heads score as much as the last of these; of equal heads those of lower layers come first."
        )
    st.caption(plain(", ".join(f"{layer}.{head}" for layer, head in heads[:60]) + (" …" if size > 60 else "")))
    task = background.finished(key)
    if task is None:
        return
    alone, without = task.result()
    columns = st.columns(3)
    for column, title, result in zip(
        columns,
        ("The whole model", f"{counted(size, 'head')} alone", f"All but {counted(size, 'head')}"),
        (outcome.result, alone, without),
        strict=True,
    ):
        column.metric(title, f"{result.logit_difference:.2f}", help="log P(right) − log P(wrong), in nats.")
        column.caption(f"{result.accuracy:.0%} right, by chance {result.chance:.0%}")
    st.caption("Ablated heads have their mean over the corrupted prompts; MLPs stay as they are.")


def _begin(
    model: LanguageModel, outcome: CircuitOutcome, heads: tuple[tuple[int, int], ...], key: tuple[str, ...]
) -> None:
    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> tuple[TaskResult, TaskResult]:
        import workbench as wb
        from workbench.circuits import keep_heads

        tell(0.0, "the circuit alone")
        alone = wb.circuits.evaluate_task(model, outcome.task, keep_heads(model, outcome.task, heads))
        tell(0.5, "all but the circuit")
        return alone, wb.circuits.evaluate_task(
            model, outcome.task, keep_heads(model, outcome.task, heads, others=False)
        )

    caching.begin(key, "Ablating", work)
