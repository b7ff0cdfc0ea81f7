"""The figure of a finite state machine: probabilities of the next state."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures.common import AGAINST, FOR, dress


def next_state_map(
    rows: Sequence[Sequence[float]], names: Sequence[str], marked: Sequence[Sequence[int]], states: int
) -> go.Figure:
    """Probabilities of the next state as a heat map, with a row for each way of running the model.

    Args:
        rows: probabilities, `[rows][states]`.
        names: of the rows.
        marked: for each row the states to mark, such as the allowed successors.
        states: number of states.
    """
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in rows],
            x=list(range(states)),
            y=list(names),
            colorscale=[[0, "#ffffff"], [1, FOR]],
            zmin=0,
            hovertemplate="%{y}<br>state %{x}<br>%{z:.1%}<extra></extra>",
            colorbar={"tickformat": ".0%", "thickness": 12},
        )
    )
    figure.add_scatter(
        x=[state for mine in marked for state in mine],
        y=[name for name, mine in zip(names, marked, strict=True) for _ in mine],
        mode="markers",
        marker={"symbol": "square-open", "color": AGAINST, "size": 11, "line": {"width": 1.5}},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_layout(height=150 + 46 * len(rows), margin={"l": 10, "r": 10, "t": 10, "b": 40})
    figure.update_xaxes(title="next state", range=[-0.6, states - 0.4])
    figure.update_yaxes(autorange="reversed")
    dress(figure)
    return figure
