"""The figure of directions: how well texts separate at each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import plotly.graph_objects as go

from workbench.figures.common import FAINT, FOR, GRID, axis_title, dress


class Separated(Protocol):
    """How well a direction separates: a `directions.Separation`."""

    @property
    def auc(self) -> float: ...

    @property
    def interval(self) -> tuple[float, float]: ...


def separation_by_layer(separation: Sequence[Separated]) -> go.Figure:
    """The area under the curve of held-out texts at each hook point, with its 95% interval.

    Args:
        separation: in the order of the layers.
    """
    layers = list(range(len(separation)))
    values = [one.auc for one in separation]
    low, high = ([one.interval[end] for one in separation] for end in (0, 1))
    band = go.Scatter(
        x=[*layers, *layers[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=GRID,
        line={"width": 0},
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=layers,
        y=values,
        mode="lines+markers",
        line={"color": FOR, "width": 2},
        marker={"size": 7},
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="layer %{x}: %{y:.3f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})<extra></extra>",
    )
    figure = go.Figure([band, line])
    dress(figure)
    figure.add_hline(y=0.5, line={"color": FAINT, "dash": "dot", "width": 1.5})
    figure.update_layout(height=260, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(title=axis_title("layer"))
    figure.update_yaxes(title=axis_title("held-out pairs in order"), range=[-0.02, 1.05])
    return figure
