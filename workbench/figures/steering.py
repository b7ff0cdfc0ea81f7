"""The figure of a search of directions: what each trial does against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import plotly.graph_objects as go

from workbench.core.text import figure_label
from workbench.figures.common import AGAINST, FAINT, FOR, axis_title, dress


class Tried(Protocol):
    """A trial: a `steering.DirectionTrial`."""

    @property
    def hook_point(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def act(self) -> str: ...

    @property
    def amount(self) -> float: ...

    @property
    def effect(self) -> float: ...

    @property
    def cost(self) -> float: ...


def search_front(trials: Sequence[Tried], front: Sequence[Tried], plain: float) -> go.Figure:
    """Effect against cost of every trial, the front as a line, and the plain model's effect.

    Args:
        trials: every trial.
        front: those that no other is better than, by rising cost.
        plain: the effect's measure on the plain model.
    """
    figure = go.Figure(
        [
            _points(trials, "markers", {"size": 8, "color": FAINT}),
            _points(front, "lines+markers", {"size": 11, "color": FOR}),
        ]
    )
    dress(figure)
    figure.add_hline(y=plain, line={"color": AGAINST, "dash": "dot", "width": 1.5})
    figure.update_layout(height=340, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(title=axis_title("cost"))
    figure.update_yaxes(title=axis_title("effect; dotted: the plain model"))
    return figure


def _points(trials: Sequence[Tried], mode: str, marker: dict) -> go.Scatter:
    return go.Scatter(
        x=[one.cost for one in trials],
        y=[one.effect for one in trials],
        mode=mode,
        marker=marker,
        line={"color": FOR, "width": 2},
        customdata=[
            [figure_label(one.hook_point), f"{one.act} {one.amount:.3g}", figure_label(one.method)] for one in trials
        ],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}<br>effect %{y:.3g}, cost %{x:.3g}"
        "<extra></extra>",
    )
