"""The look that all figures share: colours, fonts, axes and labels."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.core.text import figure_label, visible

Figure = go.Figure
"""What figures are, for rooms that name it."""
INK, FAINT, GRID = "#1f2b2a", "#7c8b93", "#e6ebe6"
FOR, AGAINST = "#1f7a6d", "#c8643c"
FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif'


def bar_figure(*traces: go.Bar | go.Scatter, rows: int, row_height: int = 24, head: int = 6) -> go.Figure:
    """A figure whose height follows from its rows; `head` is the space above them, in pixels."""
    figure = go.Figure(list(traces))
    dress(figure)
    figure.update_layout(
        height=max(80, rows * row_height + head + 10) + (40 if head > 6 else 0),
        margin={"l": 10, "r": 10, "t": head, "b": 10},
        bargap=0.25,
    )
    return figure


def dress(figure: go.Figure) -> None:
    """Give a figure the look that all figures share."""
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hoverlabel={"bgcolor": "white", "font": {"family": FONT, "size": 13, "color": INK}},
        dragmode=False,
    )
    figure.update_xaxes(gridcolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, automargin=True)


def axis_title(text: str) -> dict:
    """The title of an axis in the style of all figures."""
    return {"text": text, "font": {"size": 13, "color": FAINT}}


def name_rows(figure: go.Figure, tokens: Sequence[str]) -> None:
    """Label the rows of a figure with tokens, the first on top; by place, since two tokens may look the same."""
    figure.update_yaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[short_label(token) for token in tokens],
        autorange="reversed",
        showgrid=False,
        ticks="",
        tickfont={"size": 13},
    )


def short_label(token: str) -> str:
    """A token in at most 24 characters, as a text that Plotly can't take for markup."""
    shown = visible(token)
    return figure_label(shown if len(shown) <= 24 else shown[:23] + "…")
