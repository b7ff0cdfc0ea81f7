"""Plotly figures, made from results in this one place, so that a report and a page show the same picture."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.text import visible

INK, FAINT, GRID = "#1f2b2a", "#7c8b93", "#e6ebe6"
FOR, AGAINST = "#1f7a6d", "#c8643c"
FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif'


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


class Measured(Protocol):
    """A dictionary's measures and their confidence intervals: a `Fidelity`."""

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]: ...


def token_bars(
    tokens: Sequence[str], scores: Sequence[float], probabilities: Sequence[float] | None = None, *, colour: str = FOR
) -> go.Figure:
    """Tokens with their scores as horizontal bars, the highest on top; beside each bar the softmax probability, if any.

    Args:
        tokens: the texts.
        scores: from `token_scores`, or from a row of a `NeuronTable`.
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
        customdata=[[_label(token), share] for token, share in zip(tokens, shares, strict=True)],
        hovertemplate="%{customdata[0]}<br>score %{x:.3f}" + hover + "<extra></extra>",
    )
    figure = _figure(bars, rows=len(tokens))
    figure.update_xaxes(visible=False, range=[min(0.0, *scores), max(scores) * 1.45] if scores else None)
    _name_rows(figure, tokens)
    return figure


def token_changes(changes: Sequence[Moved], top: int = 12) -> go.Figure:
    """The tokens whose probability moved most: before and after as a pair of bars, the largest move on top."""
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
            customdata=[_label(one.text) for one in shown],
            hovertemplate="%{customdata}<br>" + name + " %{x:.3%}<extra></extra>",
        )
        for name, colour, shares in pairs
    ]
    figure = _figure(*bars, rows=len(shown), row_height=32, head=40)
    figure.update_layout(
        barmode="group",
        bargap=0.3,
        bargroupgap=0.0,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(tickformat=".1%", title=axis_title("mean probability over the positions of the plain text"))
    _name_rows(figure, [one.text for one in shown])
    return figure


def dose_curve(response: Response, at: float | None = None, title: str = "clamp value") -> go.Figure:
    """A word's probability against the strength of an intervention, on a logarithmic scale.

    Args:
        response: from `dose_response`.
        at: a strength to mark, such as the one in use.
        title: what the strength is.
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
    figure = _figure(line, rows=0)
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
    figure.update_xaxes(title=axis_title(title), zeroline=True, zerolinecolor=GRID)
    figure.update_yaxes(type="log", title=axis_title(f"probability of {_label(response.word)}"), exponentformat="power")
    return figure


def activation_histogram(edges: Sequence[float], counts: Sequence[int]) -> go.Figure:
    """How often a feature has which value; the counts on a logarithmic scale.

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
    figure = _figure(bars, rows=0)
    figure.update_layout(height=240, margin={"l": 60, "r": 20, "t": 10, "b": 45}, bargap=0)
    figure.update_xaxes(title=axis_title("value"))
    figure.update_yaxes(
        type="log", title=axis_title("tokens"), dtick=1, range=[-0.3, math.log10(max([*counts, 1])) + 0.3]
    )
    return figure


CURVES = {
    "loss": "loss",
    "fvu": "variance not explained (FVU)",
    "l0": "active latents per token (L0)",
    "dead": "dead latents",
}


def training_curves(history: Sequence[Mapping[str, float]], tokens: int | None = None) -> go.Figure:
    """Loss, unexplained variance, active latents and dead latents over a training, four small panels.

    Args:
        history: lines as `train` logs them and `read_history` reads them.
        tokens: where the axis ends: how many tokens the training will see.
    """
    figure = make_subplots(2, 2, subplot_titles=list(CURVES.values()), horizontal_spacing=0.09, vertical_spacing=0.2)
    for place, name in enumerate(CURVES):
        line = go.Scatter(
            x=[one["tokens"] for one in history],
            y=[one.get(name) for one in history],
            mode="lines" if len(history) > 1 else "markers",
            line={"color": AGAINST if name == "dead" else FOR, "width": 2},
            hovertemplate="%{x:,} tokens<br>%{y:.4g}<extra></extra>",
        )
        figure.add_trace(line, row=place // 2 + 1, col=place % 2 + 1)
    dress(figure)
    figure.update_layout(height=440, margin={"l": 50, "r": 20, "t": 30, "b": 40})
    figure.update_annotations(font={"size": 13, "color": FAINT})
    figure.update_xaxes(range=[0, tokens] if tokens else None, tickformat="~s", nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(tickformat=".0%", row=2, col=2)
    return figure


MEASURES = {
    "loss_recovered": "loss recovered",
    "fvu": "variance not explained (FVU)",
    "cosine": "cosine",
    "kl": "KL from the plain model (nats)",
    "ce_spliced": "cross-entropy through it (nats)",
    "l0": "active latents per token (L0)",
}


def fidelity_comparison(names: Sequence[str], results: Sequence[Measured]) -> go.Figure:
    """Dictionaries' fidelity side by side: a small panel for each measure, with 95% confidence intervals.

    Args:
        names: of the dictionaries.
        results: from `measure_fidelities`, in the same order.
    """
    figure = make_subplots(2, 3, subplot_titles=list(MEASURES.values()), horizontal_spacing=0.09, vertical_spacing=0.24)
    for place, measure in enumerate(MEASURES):
        values = [getattr(one, measure) for one in results]
        ends = [one.intervals[measure] for one in results]
        points = go.Scatter(
            x=list(range(len(names))),
            y=values,
            mode="markers",
            marker={"size": 11, "color": [(FOR, AGAINST, FAINT)[number % 3] for number in range(len(names))]},
            error_y={
                "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
                "color": FAINT,
                "thickness": 1.6,
                "width": 6,
            },
            customdata=[[_label(name), *span] for name, span in zip(names, ends, strict=True)],
            hovertemplate="%{customdata[0]}<br>%{y:.4g} (%{customdata[1]:.4g} to %{customdata[2]:.4g})<extra></extra>",
        )
        figure.add_trace(points, row=place // 3 + 1, col=place % 3 + 1)
    dress(figure)
    figure.update_layout(height=460, margin={"l": 50, "r": 20, "t": 30, "b": 30})
    figure.update_annotations(font={"size": 13, "color": FAINT})
    ticks = {"tickvals": list(range(len(names))), "ticktext": [_label(name) for name in names]}
    figure.update_xaxes(range=[-0.6, len(names) - 0.4], showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(nticks=5)
    return figure


def next_state_map(
    rows: Sequence[Sequence[float]], names: Sequence[str], marked: Sequence[Sequence[int]], states: int
) -> go.Figure:
    """Probabilities of the next state as a heat map, a row for each way of running the model.

    Args:
        rows: probabilities, `[rows][states]`.
        names: what each row is.
        marked: states to mark in each row: those that may follow.
        states: how many there are.
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


def _figure(*traces: go.Bar | go.Scatter, rows: int, row_height: int = 24, head: int = 6) -> go.Figure:
    figure = go.Figure(list(traces))
    dress(figure)
    figure.update_layout(
        height=max(80, rows * row_height + head + 10) + (40 if head > 6 else 0),
        margin={"l": 10, "r": 10, "t": head, "b": 10},
        bargap=0.25,
    )
    return figure


def dress(figure: go.Figure) -> None:
    """The look that all figures share."""
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
    """The title of an axis, as all figures have it."""
    return {"text": text, "font": {"size": 13, "color": FAINT}}


def _name_rows(figure: go.Figure, tokens: Sequence[str]) -> None:
    """Tokens down the left side, best on top; by place, since two tokens may look the same."""
    figure.update_yaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[_label(token) for token in tokens],
        autorange="reversed",
        showgrid=False,
        ticks="",
        tickfont={"size": 13},
    )


def _label(token: str) -> str:
    """A token as a text that Plotly can't take for markup."""
    shown = visible(token)
    return html.escape(shown if len(shown) <= 24 else shown[:23] + "…").replace("$", "&#36;")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
