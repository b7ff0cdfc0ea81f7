"""Figures of tokens: scores, changes of probability, dose curves, and the values of a feature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import plotly.graph_objects as go

from workbench.core.text import figure_text
from workbench.figures.common import AGAINST, FAINT, FOR, GRID, axis_title, bar_figure, name_rows, short_label


class Moved(Protocol):
    """A token and its probability before and after: a `TokenChange`."""

    @property
    def text(self) -> str: ...
    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...


class Response(Protocol):
    """A word's log-probability at several strengths: a `DoseResponse`."""

    @property
    def word(self) -> str: ...
    @property
    def values(self) -> Sequence[float]: ...
    @property
    def logprobs(self) -> Sequence[float]: ...
    @property
    def plain(self) -> float: ...


def token_bars(
    tokens: Sequence[str], scores: Sequence[float], probabilities: Sequence[float] | None = None, *, colour: str = FOR
) -> go.Figure:
    """Scores of tokens as horizontal bars, the first on top, with their softmax probabilities beside them.

    Args:
        tokens: the texts.
        scores: of each token, from `token_scores` or from a row of a `NeuronTable`.
        probabilities: of each token, from 0 to 1; None to leave them out.
        colour: `FOR` for promoted tokens, `AGAINST` for suppressed ones.
    """
    places = list(range(len(tokens)))
    shares = [None] * len(tokens) if probabilities is None else list(probabilities)
    hover = "" if probabilities is None else "<br>softmax probability %{customdata[1]:.3g}"
    bars = go.Bar(
        x=list(scores),
        y=places,
        orientation="h",
        marker={"color": colour, "opacity": 0.85},
        text=[
            f" {score:.2f}" + ("" if share is None else f" · {_percent(share)}")
            for score, share in zip(scores, shares, strict=True)
        ],
        textposition="outside",
        textfont={"size": 12, "color": FAINT},
        cliponaxis=False,
        customdata=[[short_label(token), share] for token, share in zip(tokens, shares, strict=True)],
        hovertemplate="%{customdata[0]}<br>score %{x:.3f}" + hover + "<extra></extra>",
    )
    figure = bar_figure(bars, rows=len(tokens))
    figure.update_xaxes(visible=False, range=[min(0.0, *scores), max(scores) * 1.45] if scores else None)
    name_rows(figure, tokens)
    return figure


def token_changes(changes: Sequence[Moved], top: int = 12) -> go.Figure:
    """Probabilities of tokens before and after as pairs of bars, of the first `top` changes, the first on top."""
    shown = list(changes)[:top]
    places = list(range(len(shown)))
    pairs = [("plain", FAINT, [one.before for one in shown]), ("edited", AGAINST, [one.after for one in shown])]
    bars = [
        go.Bar(
            x=shares,
            y=places,
            orientation="h",
            name=name,
            marker={"color": colour, "opacity": 0.85},
            customdata=[short_label(one.text) for one in shown],
            hovertemplate="%{customdata}<br>" + name + " %{x:.3%}<extra></extra>",
        )
        for name, colour, shares in pairs
    ]
    figure = bar_figure(*bars, rows=len(shown), row_height=32, head=40)
    figure.update_layout(
        barmode="group",
        bargap=0.3,
        bargroupgap=0.0,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(tickformat=".1%", title=axis_title("mean probability over the positions of the plain text"))
    name_rows(figure, [one.text for one in shown])
    return figure


def dose_curve(response: Response, at: float | None = None, title: str = "clamp value") -> go.Figure:
    """A word's probability against the strength of an intervention, on a logarithmic scale.

    Args:
        response: from `dose_response`.
        at: a strength to mark, such as the current one.
        title: the name of the strength.
    """
    line = go.Scatter(
        x=response.values,
        y=[math.exp(value) for value in response.logprobs],
        mode="lines+markers",
        name="with the edits",
        line={"color": AGAINST, "width": 2.5},
        marker={"size": 6},
        hovertemplate=title + " %{x:g}<br>probability %{y:.3g}<extra></extra>",
    )
    figure = bar_figure(line, rows=0)
    figure.update_layout(height=340, margin={"l": 70, "r": 20, "t": 30, "b": 50})
    figure.add_hline(y=math.exp(response.plain), line={"color": FAINT, "dash": "dot", "width": 1.5})
    figure.add_annotation(
        text="plain model",
        x=0,
        xref="x domain",
        xanchor="left",
        y=response.plain / math.log(10),  # on a logarithmic axis an annotation is placed by the exponent
        yanchor="bottom",
        showarrow=False,
        font={"color": FAINT, "size": 12},
    )
    if at is not None:
        figure.add_vline(x=at, line={"color": GRID, "width": 2}, layer="below")
    figure.update_xaxes(title=axis_title(figure_text(title)), zeroline=True, zerolinecolor=GRID)
    figure.update_yaxes(
        type="log", title=axis_title(f"probability of {short_label(response.word)}"), exponentformat="power"
    )
    return figure


def activation_histogram(edges: Sequence[float], counts: Sequence[int]) -> go.Figure:
    """The histogram of a feature's values, with counts on a logarithmic scale.

    Args:
        edges: of the bins, one more than counts.
        counts: tokens in each bin.
    """
    bins = list(itertools.pairwise(edges))
    bars = go.Bar(
        x=[(low + high) / 2 for low, high in bins],
        y=[count or None for count in counts],
        width=[high - low for low, high in bins],
        marker={"color": FOR, "opacity": 0.85, "line": {"color": "white", "width": 1}},
        customdata=[[low, high] for low, high in bins],
        hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:,} tokens<extra></extra>",
    )
    figure = bar_figure(bars, rows=0)
    figure.update_layout(height=240, margin={"l": 60, "r": 20, "t": 10, "b": 45}, bargap=0)
    figure.update_xaxes(title=axis_title("value"))
    figure.update_yaxes(
        type="log", title=axis_title("tokens"), dtick=1, range=[-0.3, math.log10(max([*counts, 1])) + 0.3]
    )
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
