"""Figures of predictions: the grid of a lens, what heads attend to, where a logit comes from, doubt, early exit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.core.text import figure_text
from workbench.figures.common import AGAINST, FOR, axis_title, bar_figure, dress, name_rows, short_label

SCALE = [[0, "#ffffff"], [1, FOR]]


def lens_map(
    prompt: Sequence[str],
    rows: Sequence[str],
    words: Sequence[Sequence[str]],
    shares: Sequence[Sequence[float]],
) -> go.Figure:
    """The likeliest token of each cell of a lens, coloured by its probability, the last row on top.

    Args:
        prompt: the tokens of the text.
        rows: names of the rows, such as "12" for a layer.
        words: the likeliest token of each cell, `[rows][pos]`.
        shares: their probabilities.
    """
    texts = [[short_label(word) for word in row] for row in words]
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in shares],
            text=texts,
            texttemplate="%{text}" if len(prompt) <= 16 else None,
            textfont={"size": 10},
            colorscale=SCALE,
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            hovertemplate="row %{customdata}<br>%{text} %{z:.1%}<extra></extra>",
            customdata=[[figure_text(name)] * len(prompt) for name in rows],
            colorbar={"tickformat": ".0%", "thickness": 12},
        )
    )
    dress(figure)
    figure.update_layout(height=max(240, 90 + 18 * len(rows)), margin={"l": 40, "r": 10, "t": 10, "b": 60})
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[figure_text(name) for name in rows], showgrid=False, zeroline=False
    )
    _name_columns(figure, prompt)
    return figure


def logit_bars(labels: Sequence[str], values: Sequence[float]) -> go.Figure:
    """What parts of a model add to a logit, as bars, the first on top.

    Args:
        labels: of the parts.
        values: of each, of either sign.
    """
    bars = go.Bar(
        x=list(values),
        y=list(range(len(labels))),
        orientation="h",
        marker={"color": [FOR if value > 0 else AGAINST for value in values], "opacity": 0.85},
        customdata=[figure_text(label) for label in labels],
        hovertemplate="%{customdata}<br>%{x:+.4g}<extra></extra>",
    )
    figure = bar_figure(bars, rows=len(labels), head=40)
    figure.update_xaxes(title=axis_title("share of the logit"), zeroline=True)
    name_rows(figure, labels)
    figure.update_yaxes(ticktext=[figure_text(label) for label in labels])
    return figure


def doubt_bars(prompt: Sequence[str], surprise: Sequence[float], entropy: Sequence[float]) -> go.Figure:
    """Surprise at each token, and the entropy of the prediction behind it, in nats.

    Args:
        prompt: the tokens of the text.
        surprise: at each token; NaN for none.
        entropy: behind each token.
    """
    figure = bar_figure(rows=0)
    for name, colour, values in (("surprise", AGAINST, surprise), ("entropy", FOR, entropy)):
        figure.add_bar(
            x=list(range(len(prompt))),
            y=[None if math.isnan(value) else value for value in values],
            name=name,
            marker={"color": colour, "opacity": 0.85},
            customdata=[short_label(token) for token in prompt],
            hovertemplate="%{customdata}<br>" + name + " %{y:.3g} nats<extra></extra>",
        )
    figure.update_layout(
        height=300, margin={"l": 50, "r": 10, "t": 30, "b": 60}, showlegend=True, legend={"orientation": "h", "y": 1.1}
    )
    figure.update_yaxes(title=axis_title("nats"))
    _name_columns(figure, prompt)
    return figure


def exit_curve(left: Sequence[float], confidence: float) -> go.Figure:
    """The share of tokens that has left by each layer.

    Args:
        left: by layer.
        confidence: the probability that a layer must reach.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(len(left))),
        y=list(left),
        mode="lines+markers",
        line={"color": FOR, "width": 2, "shape": "hv"},
        hovertemplate="layer %{x}<br>%{y:.1%} have left<extra></extra>",
    )
    dress(figure)
    figure.update_layout(height=300, margin={"l": 60, "r": 10, "t": 10, "b": 50})
    figure.update_xaxes(title=axis_title("layer"), tickformat="d")
    figure.update_yaxes(title=axis_title(f"left with confidence {confidence:g}"), tickformat=".0%", range=[0, 1.03])
    return figure


def _name_columns(figure: go.Figure, tokens: Sequence[str]) -> None:
    """Label the columns of a figure with tokens, by place."""
    figure.update_xaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[short_label(token) for token in tokens],
        tickangle=0 if len(tokens) < 12 else -60,
        showgrid=False,
        zeroline=False,
    )
