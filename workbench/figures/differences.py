"""Figures of two models' differences, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.text import figure_text
from workbench.figures.common import AGAINST, FAINT, FOR, axis_title, dress

COLOURS = {"layer": FAINT, "attention": FOR, "mlp": AGAINST}


def layers_figure(stream: Sequence[tuple[int, float]], grafts: Sequence[tuple[str, int, float]]) -> go.Figure:
    """The relative distance of two models' streams behind each layer, and the share that grafts of parts close.

    Args:
        stream: layer and distance.
        grafts: the part, such as "mlp of layer 3", its layer, and the share of KL that is gone.
    """
    figure = make_subplots(2 if grafts else 1, 1, shared_xaxes=True, vertical_spacing=0.12)
    figure.add_trace(
        go.Scatter(
            x=[layer for layer, _ in stream],
            y=[distance for _, distance in stream],
            mode="lines+markers",
            line={"color": FOR},
            name="distance",
            showlegend=False,
            hovertemplate="behind layer %{x}<br>%{y:.3g} of the norm<extra></extra>",
        ),
        row=1,
        col=1,
    )
    for word, colour in COLOURS.items() if grafts else ():
        some = [(layer, closed) for part, layer, closed in grafts if part.split(" ")[0] == word]
        figure.add_trace(
            go.Bar(
                x=[layer for layer, _ in some],
                y=[closed for _, closed in some],
                name=figure_text("whole layer" if word == "layer" else word),
                marker={"color": colour},
                hovertemplate="layer %{x}<br>%{y:.0%} gone<extra></extra>",
            ),
            row=2,
            col=1,
        )
    dress(figure)
    figure.update_layout(height=420 if grafts else 240, margin={"l": 60, "r": 10, "t": 10, "b": 40}, showlegend=True)
    figure.update_layout(legend={"orientation": "h", "y": 1.08})
    figure.update_yaxes(title=axis_title("distance"), rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title=axis_title("layer"), row=2 if grafts else 1, col=1)
    if grafts:
        figure.update_yaxes(title=axis_title("difference gone"), tickformat=".0%", row=2, col=1)
    return figure
