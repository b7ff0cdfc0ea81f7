"""A run of states, the active codes of each, and the predicted next states when another state's codes are forced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import caching
import pandas as pd
import streamlit as st
from shared import snippets

from states import script
from workbench import figures
from workbench.core.text import plain

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.synthetic import StateCounts, TokFSM

LENGTH, MOST = 8, 40
"""The numbers of states in a run, at first and at most."""
OWN = "the run as it is"


def show(model: LanguageModel, machine: TokFSM) -> None:
    """Draw the run, its codes, and the forcing."""
    st.caption(
        plain(
            f"{machine.states} states with {machine.edges} edges each, every state written as {machine.digits} digits. "
            "After a state, each of its edges is equally likely."
        )
    )
    number, length, button = st.columns([2, 3, 1.5], vertical_alignment="bottom")
    seed = number.number_input("Run", 0, 9999, 0, key="state run", persist_state="session")
    most = min(MOST, (model.network.n_ctx - 1) // machine.digits - 1)
    count = length.slider("States in it", 1, most, min(LENGTH, most), key="state count", persist_state="session")
    button.button("Another run", icon=":material/casino:", on_click=_another, width="stretch")
    visited = machine.walk(1, int(count), int(seed))
    walk = [int(state) for state in visited[0]]
    st.markdown("**The run**  " + " → ".join(f"`{state:0{machine.digits}d}`" for state in walk))
    if not model.splices:
        st.caption("This model has no codebooks; the ones beside it in the sidebar do.")
        _expected(model, machine, visited, None, None)
        return
    counted = caching.state_counts(model, machine)
    _codes(model, machine, counted[0], walk)
    st.subheader("Force a state's codes", anchor=False)
    which, how = st.columns([2, 4], vertical_alignment="bottom")
    target = which.selectbox(
        "On the last state, force the codes of",
        [None, *range(machine.states)],
        index=1 + (walk[-1] + machine.states // 2) % machine.states,
        format_func=lambda one: OWN if one is None else f"state {one:0{machine.digits}d}",
        key="forced state",
        help="The codes that are active on that state most often, one from every codebook; while the next state is "
        "written, the codes that are active after it.",
    )
    how.caption("Squares mark the states that may follow: those of the run's last state, and those of the forced one.")
    _expected(model, machine, visited, counted, target)


def _another() -> None:
    st.session_state["state run"] = (int(st.session_state.get("state run", 0)) + 1) % 10_000


def _codes(model: LanguageModel, machine: TokFSM, counted: StateCounts, walk: list[int]) -> None:
    """Draw the code of each codebook on each state of the run, with its precision for that state."""
    import torch

    tokens = machine.write(torch.tensor([walk]))
    activations = model.capture(tokens, list(model.splices))
    places = [(step + 1) * machine.digits for step in range(len(walk))]
    rows = []
    for point, book in model.splices.items():
        codes = book.encode(activations[point][:, places].flatten(2)).indices[0]  # type: ignore[attr-defined]  # [states, k]
        precision, groups = counted.precision(point), book.groups  # type: ignore[attr-defined]
        per_group = codes.shape[1] // groups
        for group in range(groups):
            row: dict[str, object] = {"where": f"{point}, head {group}" if groups > 1 else point}
            for step, state in enumerate(walk):
                index = int(codes[step, group * per_group])
                row[f"{step}"] = f"{index} · {float(precision[index, state]):.0%}"
            rows.append(row)
    config = {"where": st.column_config.TextColumn("Codebook", width=220)}
    for step, state in enumerate(walk):
        config[f"{step}"] = st.column_config.TextColumn(f"{state:0{machine.digits}d}", width=85)
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, height=min(35 * (len(rows) + 1) + 3, 460))
    st.caption(
        "Below each state: the code that is active on its last digit, and the share of that code's activations that "
        "are on this state. At 100% the code stands for the state alone."
    )


def _expected(
    model: LanguageModel, machine: TokFSM, visited: object, counted: list[StateCounts] | None, target: int | None
) -> None:
    """Draw the predicted next states, with and without the forced codes."""
    import torch

    from workbench.synthetic import force_state, next_states

    assert isinstance(visited, torch.Tensor)
    own = int(visited[0, -1])
    names, marked = [OWN], [machine.successors[own].tolist()]
    rows = [next_states(model, machine, visited)[0].tolist()]
    if counted is not None and target is not None:
        edits = force_state(model, machine, counted, target, visited.shape[1])
        forced = next_states(model, machine, visited, edits)[0]
        rows.append(forced.tolist())
        names.append(f"forced: {target:0{machine.digits}d}")
        marked.append(machine.successors[target].tolist())
        on_target, on_own = (float(forced[machine.follows[state]].sum()) for state in (target, own))
        left, right = st.columns(2)
        left.metric("Probability on the forced state's edges", f"{on_target:.1%}")
        right.metric("Left on the run's own edges", f"{on_own:.1%}")
    figure = figures.next_state_map(rows, names, marked, machine.states)
    st.plotly_chart(figure, theme=None, key="next states", config={"displayModeBar": False})
    walk = visited[0].tolist()
    snippets.show(script.states(st.session_state["source"], walk, target if counted is not None else None))
