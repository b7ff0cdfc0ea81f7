"""Figures of the favourite-animal experiment."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.neuron_decoding.figures import COLOURS, percent
from analyses.shared.report import look
from workbench.figures.common import FAINT


def favourite_figure(favourite: dict[str, Any]) -> go.Figure:
    """Success rates of the plain, the random and the clamped models, for each animal and for all together."""
    names = [*favourite["animals"], "all three"]
    figure = make_subplots(1, len(names), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03)
    sides = {
        "plain": "plain model",
        "paper random": "random, at up",
        "paper clamped": "clamped, at up",
        "any random": "random, at chosen site",
        "any clamped": "clamped, at chosen site",
    }
    for column, name in enumerate(names, 1):
        for side, label in sides.items():
            if name == "all three":
                verdict = favourite["pooled"]["greedy"][side]
            else:
                animal, (kind, _, who) = favourite["animals"][name], side.partition(" ")
                verdict = animal["plain"]["greedy"] if side == "plain" else animal["chosen"][kind][who]["greedy"]
            colour = COLOURS["up"] if side.endswith("clamped") else FAINT
            for mark, symbol in (("success", "circle"), ("fluent_success", "circle-open")):
                rate = verdict[mark]
                error = {"array": [rate["high"] - rate["rate"]], "arrayminus": [rate["rate"] - rate["low"]]}
                figure.add_scatter(
                    x=[rate["rate"]],
                    y=[label],
                    mode="markers",
                    marker={"symbol": symbol, "size": 10 if mark == "success" else 15, "color": colour},
                    error_x={**error, "thickness": 1.5, "color": colour} if mark == "success" else None,
                    hovertemplate=f"{label}, {mark.replace('_', ' ')}: {percent(rate)}<extra></extra>",
                    showlegend=False,
                    row=1,
                    col=column,
                )
        figure.update_xaxes(range=[-0.06, 1.06], tickformat=".0%", tickvals=[0, 0.5, 1], row=1, col=column)
    figure.update_yaxes(autorange="reversed")
    return look(figure, 330)


def strength_figure(animals: dict[str, Any]) -> go.Figure:
    """Success and perplexity against the clamp value, for each animal and site."""
    figure = make_subplots(
        2, len(animals), shared_xaxes=True, shared_yaxes=True, subplot_titles=list(animals), vertical_spacing=0.08
    )
    for column, animal in enumerate(animals.values(), 1):
        for site in dict.fromkeys(row["site"] for row in animal["grid"]):
            own = sorted((row for row in animal["grid"] if row["site"] == site), key=lambda row: row["value"])
            values = [row["value"] for row in own]
            plain = animal["plain"]["greedy"]
            for mark, dash in (("success", "solid"), ("fluent_success", "dot")):
                figure.add_scatter(
                    x=values,
                    y=[row[mark]["rate"] for row in own],
                    mode="lines+markers",
                    line={"color": COLOURS[site], "dash": dash},
                    marker_size=5,
                    name=site if mark == "success" else f"{site}, fluent",
                    showlegend=column == 1,
                    row=1,
                    col=column,
                )
            figure.add_scatter(
                x=values,
                y=[row["perplexity"] for row in own],
                mode="lines+markers",
                line={"color": COLOURS[site]},
                marker_size=5,
                showlegend=False,
                row=2,
                col=column,
            )
        for row, level in ((1, plain["success"]["rate"]), (2, plain["perplexity"])):
            figure.add_hline(level, line={"color": FAINT, "dash": "dash", "width": 1}, row=row, col=column)
        figure.update_xaxes(title="clamp value", row=2, col=column)
    figure.update_yaxes(title="answers about it", tickformat=".0%", range=[-0.05, 1.05], row=1, col=1)
    figure.update_yaxes(title="perplexity", row=2, col=1)
    figure.update_yaxes(type="log", row=2)
    return look(figure, 560)
