"""Figures of circuits: scores of all heads side by side, and their agreement with a known circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.text import figure_text
from workbench.figures.common import AGAINST, FAINT, FOR, GRID, axis_title, dress, short_label

COLOURS = (FOR, AGAINST, "#8a6d3b", "#4b6c9e", "#8d5a97", FAINT)


def head_maps(maps: Mapping[str, Sequence[Sequence[float]]], circuit: Sequence[tuple[int, int]] = ()) -> go.Figure:
    """Scores of heads as heat maps side by side, layers downwards, each with its own colour scale.

    Args:
        maps: by name, `[layer][head]`; 0 is white, also in maps with values below 0.
        circuit: heads to mark in every map, as (layer, head).
    """
    maps = {figure_text(name): rows for name, rows in maps.items()}
    names = list(maps)
    layers = max(len(rows) for rows in maps.values())
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.025)
    for place, name in enumerate(names, 1):
        rows = [list(row) for row in maps[name]]
        most = max((abs(value) for row in rows for value in row), default=0.0) or 1.0
        signed = any(value < 0 for row in rows for value in row)
        scale = [[0, AGAINST], [0.5, "#ffffff"], [1, FOR]] if signed else [[0, "#ffffff"], [1, FOR]]
        heat = go.Heatmap(
            z=rows,
            zmin=-most if signed else 0,
            zmax=most,
            colorscale=scale,
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate="layer %{y}, head %{x}<br>" + name + " %{z:.3g}<extra></extra>",
        )
        figure.add_trace(heat, row=1, col=place)
        marks = go.Scatter(
            x=[head for _, head in circuit],
            y=[layer for layer, _ in circuit],
            mode="markers",
            marker={"symbol": "square-open", "color": "#1f2b2a", "size": 9, "line": {"width": 1.2}},
            hoverinfo="skip",
        )
        figure.add_trace(marks, row=1, col=place)
    dress(figure)
    figure.update_layout(height=max(220, 70 + 15 * layers), margin={"l": 30, "r": 10, "t": 30, "b": 40})
    figure.update_annotations(font={"size": 13, "color": FAINT})
    figure.update_xaxes(title=axis_title("head"), showgrid=False, zeroline=False, dtick=2 if layers > 8 else 1)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_yaxes(title=axis_title("layer"), col=1)
    return figure


def roc_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> go.Figure:
    """ROC curves in one figure.

    Args:
        curves: by name, false and true positive rates, as `roc_curve` returns them.
    """
    figure = go.Figure()
    for number, (name, (false, true)) in enumerate(curves.items()):
        name = figure_text(name)  # noqa: PLW2901 - for markup and mathematics
        figure.add_scatter(
            x=list(false),
            y=list(true),
            mode="lines",
            name=name,
            line={"color": COLOURS[number % len(COLOURS)], "width": 2},
            hovertemplate=name + "<br>%{y:.0%} of the circuit at %{x:.0%} of the rest<extra></extra>",
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GRID, "dash": "dash"}, showlegend=False, hoverinfo="skip"
    )
    dress(figure)
    figure.update_layout(height=380, margin={"l": 60, "r": 20, "t": 10, "b": 50}, showlegend=True)
    figure.update_xaxes(
        title=axis_title("share of the other heads taken for it"), tickformat=".0%", range=[-0.02, 1.02]
    )
    figure.update_yaxes(title=axis_title("share of the circuit found"), tickformat=".0%", range=[-0.02, 1.02])
    return figure


def position_map(
    effects: Sequence[Sequence[float]],
    rows: Sequence[str],
    places: Sequence[str],
    metric: str,
    answers: Sequence[Sequence[str]] = (),
) -> go.Figure:
    """Effects of patching as a heat map, places from left to right and rows downwards; 0 is white.

    Args:
        effects: `[rows][places]`.
        rows: layers, heads or features.
        places: spans or tokens.
        metric: what the effects are of.
        answers: the likeliest token under each change, `[rows][places]`; empty where it is not known.
    """
    most = max((abs(value) for row in effects for value in row), default=0.0) or 1.0
    named = [[short_label(one) for one in row] for row in answers] or [[""] * len(places) for _ in rows]
    heat = go.Heatmap(
        z=[list(row) for row in effects],
        zmin=-most,
        zmax=most,
        colorscale=[[0, AGAINST], [0.5, "#ffffff"], [1, FOR]],
        xgap=1,
        ygap=1,
        colorbar={"thickness": 10, "outlinewidth": 0},
        hoverinfo="skip",
    )
    cells = [(y, x) for y in range(len(rows)) for x in range(len(places))]
    labels = [short_label(one) for one in places]
    points = go.Scatter(  # a heat map's own cells can't be chosen
        x=[x for _, x in cells],
        y=[y for y, _ in cells],
        mode="markers",
        marker={"symbol": "square", "size": 14, "opacity": 0},
        customdata=[[short_label(rows[y]), labels[x], effects[y][x], named[y][x]] for y, x in cells],
        hovertemplate="row %{customdata[0]}, %{customdata[1]}<br>"
        + figure_text(metric)
        + " %{customdata[2]:+.3g}"
        + ("<br>answer %{customdata[3]}" if answers else "")
        + "<extra></extra>",
    )
    figure = go.Figure([heat, points])
    dress(figure)
    figure.update_layout(height=max(240, 110 + 15 * len(rows)), margin={"l": 30, "r": 10, "t": 10, "b": 90})
    ticks = list(range(0, len(rows), 2 if len(rows) > 40 else 1))
    figure.update_xaxes(tickvals=list(range(len(places))), ticktext=labels, showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=ticks, ticktext=[short_label(rows[one]) for one in ticks], autorange="reversed", showgrid=False
    )
    return figure
