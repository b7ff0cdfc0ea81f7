"""The heads of a task on the page: finding them by every method that was asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import caching
import pandas as pd
import streamlit as st
from circuits import ablated
from circuits.asked import METHODS, TRUTH, Asked, Found
from shared import background, snippets
from shared.tokens import plain

from workbench.figures.circuits import head_maps
from workbench.figures.common import visible

if TYPE_CHECKING:
    from workbench.circuits import Task
    from workbench.model import LanguageModel

SHOWN = 12
"""Pairs of prompts in the table."""
WORTH = {"discrete": 3.0, "attribution": 1.0}
"""How long the quick methods take, beside `SLOW` for the others, for the bar."""
SLOW = 30.0


def begin(model: LanguageModel, asked: Asked) -> None:
    """Start finding, if that has not been done."""
    from workbench.circuits import encode_task

    going = caching.task(asked.key)
    if going is not None and not going.failed and not going.stopping:
        return
    task = asked.task(model)
    encode_task(model, task)  # complain here

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Found:
        import workbench as wb

        tell(0.0, "how well the task is done")
        found = Found(task, wb.circuits.evaluate_task(model, task))
        parts = {method: WORTH.get(method, SLOW) for method in METHODS if method in asked.methods}
        passed, whole = 0.0, sum(parts.values())
        for method, part in parts.items():

            def told(share: float, what: str, passed: float = passed, part: float = part) -> None:
                tell((passed + share * part) / whole, what)

            try:
                found.scores[method], found.seconds[method] = _scored(
                    model, asked, found.task, method, {"progress": told, "cancel": cancelled}
                )
            except wb.circuits.TaskError:
                if not cancelled():
                    raise
                break
            passed += part
        return found

    caching.begin(asked.key, "Finding heads", work, asked)


def _scored(model: LanguageModel, asked: Asked, task: Task, method: str, how: dict[str, Any]) -> tuple[Any, float]:
    """Scores of one method, `[layer, head]`, and the seconds that they took."""
    import workbench as wb

    if method == "discrete":
        one = wb.circuits.find_circuit_discrete(model, task.positives, task.corrupted, seed=asked.seed, **how)
        return one.heads, one.seconds
    if method == "attribution":
        made = wb.circuits.attribution_patching(model, task, mlps=False, **how)
    else:
        made = wb.circuits.patch_components(model, task, method, mlps=False, seed=asked.seed, **how)
    return made.heads, made.seconds


def show(model: LanguageModel, asked: Asked) -> None:
    """How far the finding is, or the heads."""
    going = caching.task(asked.key)
    if going is None:
        return
    if not going.done:
        background.follow(asked.key)
        return
    if going.failed:
        background.show_failure(asked.key)
        return
    found: Found = going.result()
    if going.stopping:
        st.caption(":material/pause: Stopped early: not every method came to its end.")
    _how_well(found)
    _prompts(found)
    if not found.scores:
        return
    circuit = found.circuit
    marked = [] if circuit is None else circuit.nonzero().tolist()
    maps = {METHODS[name]: score.tolist() for name, score in found.scores.items()}
    figure = head_maps(maps, [(layer, head) for layer, head in marked])
    st.plotly_chart(figure, theme=None, key="head maps", config={"displayModeBar": False})
    if circuit is None:
        st.caption("Without patching there is no truth to hold the methods against.")
    else:
        st.caption(
            f"Squares mark the {len(marked)} heads, a tenth of all, whose patching changes most. Effects are in nats "
            "of log P(right) − log P(wrong); the discrete SAE counts codes that occur on positive prompts only."
        )
        _judgements(found)
    ablated.show(model, asked, found)
    snippets.show(snippets.circuits(asked))


def _how_well(found: Found) -> None:
    done = found.done
    if done.warning:
        st.warning(plain(done.warning), icon=":material/warning:")
    one, two, three, four = st.columns(4)
    one.metric("Right", f"{done.accuracy:.0%}", help=f"By chance {done.chance:.0%}; {done.examples} prompts.")
    two.metric("Right token is the likeliest of all", f"{done.first:.0%}")
    three.metric("log P(right) − log P(wrong)", f"{done.logit_difference:.2f}", help="In nats, mean over prompts.")
    four.metric("The same on corrupted prompts", f"{done.corrupted:.2f}")


def _prompts(found: Found) -> None:
    task = found.task
    rows = [
        {
            "positive": visible(task.positives[row]),
            "corrupted": visible(task.corrupted[row]),
            "right": " ".join(map(visible, task.answers[row])),
            "wrong": " ".join(map(visible, task.wrong[row])),
        }
        for row in range(min(len(task), SHOWN))
    ]
    with st.expander(f"Prompts ({len(task)} pairs)", icon=":material/list:"):
        if task.about:
            st.caption(plain(" ".join(task.about.split())))
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def _judgements(found: Found) -> None:
    rows = [
        {
            "method": METHODS[name],
            "auc": f"{one.auc:.3f}",
            "precision": f"{one.precision:.0%} of {one.chosen}",
            "recall": f"{one.recall:.0%}",
            "seconds": f"{found.seconds[name]:.1f}",
        }
        for name, one in found.judged().items()
    ]
    if not rows:
        return
    config = {
        "method": st.column_config.TextColumn("Against patching", width=190),
        "auc": st.column_config.TextColumn("ROC AUC", width=80, help="1 is perfect, 0.5 is chance."),
        "precision": st.column_config.TextColumn("Precision", width=110, help="Of its highest heads, with all equal."),
        "recall": st.column_config.TextColumn("Recall", width=80),
        "seconds": st.column_config.TextColumn(f"Seconds (patching {found.seconds[TRUTH]:.1f})", width=170),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config)
