"""The heads of a task on the page: the search by every requested method, and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from shared import background, snippets

from circuits import ablated, script
from circuits.request import METHODS, TRUTH, CircuitOutcome, CircuitRequest
from workbench.core.text import counted, plain, visible
from workbench.figures.circuits import head_maps

if TYPE_CHECKING:
    from workbench.circuits import Task
    from workbench.model import LanguageModel

SHOWN = 12
"""Pairs of prompts in the table."""
WORTH = {"discrete": 3.0, "attribution": 1.0}
"""Relative durations of the quick methods for the progress bar; `SLOW` for the others."""
SLOW = 30.0


def begin(model: LanguageModel, request: CircuitRequest) -> None:
    """Start the search, unless it goes on or has ended with a result."""
    from workbench.circuits import encode_task

    going = caching.task(request.key)
    if going is not None and not going.failed and not going.stopping:
        return
    task = request.task(model)
    encode_task(model, task)  # raises for bad prompts, before the work starts

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> CircuitOutcome:
        import workbench as wb

        tell(0.0, "evaluating the task")
        outcome = CircuitOutcome(task, wb.circuits.evaluate_task(model, task))
        parts = {method: WORTH.get(method, SLOW) for method in METHODS if method in request.methods}
        passed, whole = 0.0, sum(parts.values())
        for method, part in parts.items():

            def on_progress(share: float, what: str, passed: float = passed, part: float = part) -> None:
                tell((passed + share * part) / whole, what)

            try:
                outcome.scores[method], outcome.seconds[method] = _scored(
                    model, request, outcome.task, method, {"progress": on_progress, "cancel": cancelled}
                )
            except wb.circuits.TaskError:
                if not cancelled():
                    raise
                break
            passed += part
        return outcome

    caching.begin(request.key, "Finding heads", work, request)


def _scored(
    model: LanguageModel, request: CircuitRequest, task: Task, method: str, how: dict[str, Any]
) -> tuple[Any, float]:
    """The scores of one method, `[layer, head]`, and the seconds that they took."""
    import workbench as wb

    if method == "discrete":
        one = wb.circuits.find_circuit_discrete(model, task.positives, task.corrupted, seed=request.seed, **how)
        return one.heads, one.seconds
    if method == "attribution":
        result = wb.circuits.attribution_patching(model, task, mlps=False, **how)
    else:
        result = wb.circuits.patch_components(model, task, method, mlps=False, seed=request.seed, **how)
    return result.heads, result.seconds


def show(model: LanguageModel, request: CircuitRequest) -> None:
    """Draw the progress of the search, or the heads."""
    task = background.finished(request.key)
    if task is None:
        return
    outcome: CircuitOutcome = task.result()
    if task.stopping:
        st.caption(":material/pause: Stopped early: not every method is complete.")
    _evaluation(outcome)
    _prompts(outcome)
    if not outcome.scores:
        return
    circuit = outcome.circuit
    marked = [] if circuit is None else circuit.nonzero().tolist()
    maps = {METHODS[name]: score.tolist() for name, score in outcome.scores.items()}
    figure = head_maps(maps, [(layer, head) for layer, head in marked])
    st.plotly_chart(figure, theme=None, key="head maps", config={"displayModeBar": False})
    if circuit is None:
        st.caption("Without patching there is no truth to compare the methods with.")
    else:
        st.caption(
            f"Squares mark the {len(marked)} heads, a tenth of all, with the largest effects of patching. Effects are "
            "in nats of log P(right) − log P(wrong); the discrete SAE counts codes that occur on positive prompts only."
        )
        _judgements(outcome)
    ablated.show(model, request, outcome)
    snippets.show(script.circuits(request))


def _evaluation(outcome: CircuitOutcome) -> None:
    result = outcome.result
    if result.warning:
        st.warning(plain(result.warning), icon=":material/warning:")
    one, two, three, four = st.columns(4)
    one.metric(
        "Right", f"{result.accuracy:.0%}", help=f"By chance {result.chance:.0%}; {counted(result.examples, 'prompt')}."
    )
    two.metric("Right token is the likeliest of all", f"{result.first:.0%}")
    three.metric("log P(right) − log P(wrong)", f"{result.logit_difference:.2f}", help="In nats, mean over prompts.")
    four.metric("The same on corrupted prompts", f"{result.corrupted:.2f}")


def _prompts(outcome: CircuitOutcome) -> None:
    task = outcome.task
    rows = [
        {
            "positive": plain(task.positives[row]),
            "corrupted": plain(task.corrupted[row]),
            "right": plain(" ".join(map(visible, task.answers[row]))),
            "wrong": plain(" ".join(map(visible, task.wrong[row]))),
        }
        for row in range(min(len(task), SHOWN))
    ]
    with st.expander(f"Prompts ({counted(len(task), 'pair')})", icon=":material/list:"):
        if task.about:
            st.caption(plain(" ".join(task.about.split())))
        st.table(pd.DataFrame(rows).set_index("positive"))  # whose lines break


def _judgements(outcome: CircuitOutcome) -> None:
    rows = [
        {
            "method": METHODS[name],
            "auc": f"{one.auc:.3f}",
            "precision": f"{one.precision:.0%} of {one.chosen}",
            "recall": f"{one.recall:.0%}",
            "seconds": f"{outcome.seconds[name]:.1f}",
        }
        for name, one in outcome.judged().items()
    ]
    if not rows:
        return
    config = {
        "method": st.column_config.TextColumn("Against patching", width=190),
        "auc": st.column_config.TextColumn("ROC AUC", width=80, help="1 is perfect, 0.5 is chance."),
        "precision": st.column_config.TextColumn("Precision", width=110, help="Of its highest heads, with all equal."),
        "recall": st.column_config.TextColumn("Recall", width=80),
        "seconds": st.column_config.TextColumn(f"Seconds (patching {outcome.seconds[TRUTH]:.1f})", width=170),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config)
