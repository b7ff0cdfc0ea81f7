"""Figures of activation sparsity: by layer, and against the rise in perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go

from workbench.core.text import figure_text
from workbench.figures.common import AGAINST, FAINT, FOR, axis_title, dress

DASHES = ("solid", "dash", "dot")
MEASURES = {"cett": ("PPL-p%", FOR), "fixed": ("one threshold for all layers", AGAINST), "top_k": ("top-k", FAINT)}
"""Labels and colours of the measures."""


class Outcome(Protocol):
    """Neurons left out on some texts: a `SparsityOutcome`."""

    @property
    def by_layer(self) -> Sequence[float]: ...
    @property
    def by_layer_intervals(self) -> Sequence[tuple[float, float]]: ...


class Measured(Protocol):
    """A measured sparsity: a `Sparsity`."""

    @property
    def calibrated(self) -> Any: ...
    @property
    def curves(self) -> Mapping[str, Sequence[tuple[float, float, float]]]: ...


def sparsity_by_layer(names: Sequence[str], outcomes: Sequence[Outcome]) -> go.Figure:
    """The share of neurons left out by layer, with 95% confidence intervals, one line for each model."""
    figure = go.Figure()
    for number, (name, one) in enumerate(zip(names, outcomes, strict=True)):
        layers = list(range(len(one.by_layer)))
        figure.add_scatter(
            x=layers,
            y=list(one.by_layer),
            mode="lines+markers",
            name=figure_text(name),
            line={"color": (FOR, AGAINST)[number % 2], "width": 2},
            marker={"size": 7},
            error_y={
                "array": [high - share for share, (_, high) in zip(one.by_layer, one.by_layer_intervals, strict=True)],
                "arrayminus": [
                    share - low for share, (low, _) in zip(one.by_layer, one.by_layer_intervals, strict=True)
                ],
                "thickness": 1.2,
                "width": 3,
            },
            hovertemplate="layer %{x}<br>%{y:.1%} left out<extra></extra>",
        )
    dress(figure)
    figure.update_layout(height=320, margin={"l": 60, "r": 20, "t": 30, "b": 45}, **_legend(len(names) > 1))
    figure.update_xaxes(
        title=axis_title("layer"), tickformat="d", nticks=min(max(len(one.by_layer) for one in outcomes), 12)
    )
    figure.update_yaxes(title=axis_title("neurons left out"), tickformat=".0%", rangemode="tozero")
    return figure


def sparsity_price(names: Sequence[str], results: Sequence[Measured]) -> go.Figure:
    """The rise in perplexity against the share of neurons left out, one line for each measure and model.

    Settings that do not raise perplexity are left out of the logarithmic axis. A ring marks the result's own setting.
    """
    figure = go.Figure()
    for number, (name, one) in enumerate(zip(names, results, strict=True)):
        for measure, points in one.curves.items():
            label, colour = MEASURES[measure]
            shown = [point for point in points if point[2] > 0]
            figure.add_scatter(
                x=[share for _, share, _ in shown],
                y=[rise for _, _, rise in shown],
                mode="lines+markers",
                name=label if len(names) == 1 else figure_text(f"{name}: {label}"),
                line={"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]},
                marker={"size": 6},
                hovertemplate=label + "<br>%{x:.1%} left out, perplexity %{y:+.2%}<extra></extra>",
            )
        stands = one.calibrated
        figure.add_scatter(
            x=[stands.sparsity],
            y=[max(stands.ppl_increase, 1e-6)],
            mode="markers",
            marker={"symbol": "circle-open", "size": 15, "color": FOR, "line": {"width": 2}},
            hoverinfo="skip",
            showlegend=False,
        )
    dress(figure)
    figure.update_layout(height=360, margin={"l": 70, "r": 20, "t": 30, "b": 50}, **_legend(True))
    if len(names) > 1:  # many entries, below the picture
        figure.update_layout(height=440, legend={"y": -0.22, "yanchor": "top", "font": {"size": 11}})
    figure.update_xaxes(
        title=axis_title("neurons left out, on the texts that thresholds are found on"), tickformat=".0%"
    )
    figure.update_yaxes(title=axis_title("rise in perplexity"), type="log", tickformat=".2~%", dtick=1)
    return figure


def _legend(shown: bool) -> dict[str, Any]:
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}
    return {"showlegend": shown, "legend": legend}
