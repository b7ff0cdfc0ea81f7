"""Figures of one text: what a head attends to, and what taking something out does to a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.figures.common import AGAINST, FAINT, FOR, axis_title, bar_figure, dress, name_rows, short_label

NAMED = 40
"""Tokens of a text whose names stand at the axes."""


def attention_map(tokens: Sequence[str], pattern: Sequence[Sequence[float]], *, written: bool = False) -> go.Figure:
    """What a head attends to: queries downwards, keys to the right.

    Args:
        tokens: the text.
        pattern: `[query][key]`.
        written: whether its values are norms of what is written, and no probabilities.
    """
    names = [f"{place} {short_label(token)}" for place, token in enumerate(tokens)]
    heat = go.Heatmap(
        z=[list(row) for row in pattern],
        x=names,
        y=names,
        zmin=0,
        zmax=None if written else 1,
        colorscale=[[0, "#ffffff"], [1, FOR]],
        showscale=False,
        hovertemplate="%{y} looks at %{x}<br>" + ("%{z:.3g}" if written else "%{z:.1%}") + "<extra></extra>",
    )
    figure = go.Figure(heat)
    dress(figure)
    few = len(names) <= NAMED
    side = min(640, 120 + (18 if few else 5) * len(names))
    figure.update_layout(height=side, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    ticks = {"showticklabels": few, "showgrid": False, "zeroline": False, "tickfont": {"size": 12}}
    figure.update_xaxes(title=axis_title("looked at"), tickangle=-60, **ticks)
    figure.update_yaxes(title=axis_title("from"), autorange="reversed", **ticks)
    return figure


def removal_bars(label: str, change: float, others: Sequence[tuple[str, float]]) -> go.Figure:
    """What taking something out does to a token's log-probability, on top, and the same for others of its kind.

    Args:
        label: the name of what is taken out.
        change: in nats.
        others: names and changes.
    """
    names, values = [label, *(name for name, _ in others)], [change, *(value for _, value in others)]
    bars = go.Bar(
        x=values,
        y=list(range(len(values))),
        orientation="h",
        marker={"color": [AGAINST, *[FAINT] * len(others)], "opacity": 0.85},
        text=[f" {value:+.2f} " for value in values],
        textposition="outside",
        textfont={"size": 12, "color": FAINT},
        cliponaxis=False,
        hovertemplate="%{x:+.3f} nats<extra></extra>",
    )
    figure = bar_figure(bars, rows=len(values))
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.2 * ((high - low) or 1.0)
    figure.update_xaxes(visible=False, range=[low - room, high + room])
    name_rows(figure, names)
    return figure
