"""Figures of the study, from its results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.shared.report import look
from workbench.figures.common import AGAINST, FAINT, FOR, INK

COLOURS = {"gate": "#8a6fb0", "up": FOR, "post": AGAINST, "down": AGAINST}
"""Down and post share a colour, since a down column writes the value of post."""
SITES = ("up", "post", "gate")
"""Sites, the paper's first."""


def concept_figure(concepts: dict[str, Any], rule: dict[str, Any]) -> go.Figure:
    """Forms per concept, for its best neuron and the best random vector; concepts from bottom to top."""
    figure = go.Figure()
    for weights in ("gate", "up", "down"):
        own = {name: row for name, row in concepts.items() if row["weights"] == weights}
        figure.add_bar(
            y=list(own),
            x=[row["forms"] for row in own.values()],
            customdata=[[row["feature"], ", ".join(row["tokens"]), row["excess"]] for row in own.values()],
            hovertemplate="%{y}: %{customdata[0]}<br>%{customdata[1]}<br>excess %{customdata[2]:.1f}<extra></extra>",
            name=f"{weights} weights",
            orientation="h",
            marker_color=COLOURS[weights],
            marker_opacity=[1.0 if row["specialised"] else 0.45 for row in own.values()],
        )
    figure.add_scatter(
        y=list(concepts),
        x=[row["null_forms"] for row in concepts.values()],
        mode="markers",
        name="best random vector",
        marker={"symbol": "diamond-open", "size": 8, "color": INK},
        hovertemplate="%{y}: %{x} by chance<extra></extra>",
    )
    figure.add_vline(rule["min_forms"], line={"color": FAINT, "width": 1, "dash": "dot"})
    figure.update_yaxes(categoryorder="array", categoryarray=list(concepts), tickfont_size=11, dtick=1)
    figure.update_xaxes(title=f"forms among the top {rule['top_k']} tokens", rangemode="tozero")
    return look(figure, 120 + 19 * len(concepts))


def dose_figure(dose: dict[str, Any], values: list[float]) -> go.Figure:
    """Mean curve of all concepts at each site, beside random neurons'."""
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=[f"clamped at {site}" for site in SITES])
    for column, site in enumerate(SITES, 1):
        own = np.array([row[site]["curve"] for row in dose.values()])  # [concepts, values]
        others = np.concatenate([row[site]["random_curves"] for row in dose.values()])  # [concepts * random, values]
        for rows, colour, name in ((others, FAINT, "random neurons"), (own, COLOURS[site], "concept neurons")):
            low, high = np.quantile(rows, [0.25, 0.75], axis=0)
            figure.add_scatter(**band(values, low, high, colour), row=1, col=column)
            figure.add_scatter(
                x=values,
                y=rows.mean(0).tolist(),
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
                marker_size=5,
                name=f"{name}, {site}" if rows is own else name,
                showlegend=rows is own or column == 1,
                row=1,
                col=column,
            )
        figure.update_xaxes(title="clamp value", row=1, col=column)
    figure.update_yaxes(title="Δ log P(word), nats", col=1)
    return look(figure, 400)


def depth_figure(dose: dict[str, Any], concepts: dict[str, Any]) -> go.Figure:
    """The swing of each concept's word against its neuron's layer, for each site."""
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=[f"clamped at {site}" for site in SITES])
    layers = [concepts[concept]["layer"] for concept in dose]
    for column, site in enumerate(SITES, 1):
        rows = [row[site] for row in dose.values()]
        figure.add_scatter(
            x=[layer for layer, row in zip(layers, rows, strict=True) for _ in row["random_swing"]],
            y=[swing for row in rows for swing in row["random_swing"]],
            mode="markers",
            marker={"size": 4, "color": FAINT, "opacity": 0.35},
            hoverinfo="skip",
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=layers,
            y=[row["swing"] for row in rows],
            text=list(dose),
            mode="markers",
            marker={
                "size": 9,
                "color": COLOURS[site],
                "symbol": ["circle" if concepts[concept]["specialised"] else "circle-open" for concept in dose],
            },
            hovertemplate="%{text}, layer %{x}: %{y:.2f} nats<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="layer of the neuron", row=1, col=column)
    figure.update_yaxes(title="swing, nats", col=1)
    return look(figure, 380, top=40).update_layout(showlegend=False)


def small_multiples(dose: dict[str, Any], values: list[float], across: int = 5) -> go.Figure:
    """One panel per concept; buttons choose the site."""
    down = math.ceil(len(dose) / across)
    figure = make_subplots(
        down, across, shared_xaxes=True, shared_yaxes=True, subplot_titles=list(dose), vertical_spacing=0.25 / down
    )
    shown = []
    for site in SITES:
        for place, row in enumerate(dose.values()):
            at = {"row": place // across + 1, "col": place % across + 1}
            others = np.array(row[site]["random_curves"])
            figure.add_scatter(**band(values, others.min(0), others.max(0), FAINT), visible=site == SITES[0], **at)
            line = {"color": COLOURS[site], "width": 2}
            figure.add_scatter(
                x=values,
                y=row[site]["curve"],
                mode="lines",
                line=line,
                showlegend=False,
                visible=site == SITES[0],
                hovertemplate="%{x}: %{y:.2f} nats<extra></extra>",
                **at,
            )
            shown += [site, site]
    figure.update_annotations(font_size=12)
    figure.update_layout(updatemenus=[site_buttons([[other == site for other in shown] for site in SITES])])
    return look(figure, 110 + 105 * down, top=90)


def matrix_figure(dose: dict[str, Any]) -> go.Figure:
    """Change of every concept's word under every concept's neuron; buttons choose the site."""
    figure, names = go.Figure(), list(dose)
    every = np.abs([[row[site]["word_changes"] for row in dose.values()] for site in SITES])
    limit = float(np.quantile(every, 0.995))
    for site in SITES:
        figure.add_heatmap(
            z=[row[site]["word_changes"] for row in dose.values()],
            x=names,
            y=names,
            zmin=-limit,
            zmax=limit,
            colorscale="RdBu",
            reversescale=True,
            visible=site == SITES[0],
            colorbar={"title": {"text": "nats"}, "thickness": 12},
            hovertemplate="%{y} neuron, word %{x}: %{z:.2f} nats<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", title="neuron clamped", tickfont_size=10, dtick=1)
    figure.update_xaxes(title="word measured", tickfont_size=10, tickangle=-60, dtick=1)
    figure.update_layout(updatemenus=[site_buttons([[other == site for other in SITES] for site in SITES])])
    return look(figure, 250 + 15 * len(names), top=60)


def layer_figure(decoding: dict[str, Any], threshold: str) -> go.Figure:
    """Shares of clear and of one-word neurons in each layer, for each weight."""
    figure = make_subplots(1, 2, subplot_titles=["clear meaning", "one word"], horizontal_spacing=0.08)
    for weights, row in decoding["tables"].items():
        line = {"color": COLOURS[weights], "width": 2}
        chances = (decoding["null"]["excess"][weights][threshold], decoding["null"]["one_word"][weights])
        for column, (key, chance) in enumerate(zip(("clear_by_layer", "one_word_by_layer"), chances, strict=True), 1):
            figure.add_scatter(y=row[key], line=line, name=weights, showlegend=column == 1, row=1, col=column)
            figure.add_hline(chance, line={"color": COLOURS[weights], "width": 1, "dash": "dash"}, row=1, col=column)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return look(figure, 360)


def softmax_figure(decoding: dict[str, Any]) -> go.Figure:
    """The distribution of the softmax's highest entry, on a log scale."""
    figure = go.Figure()
    for weights, values in decoding["softmax_top"].items():
        logs = np.log10(values)
        counts, edges = np.histogram(logs, bins=60)
        figure.add_scatter(
            x=(10 ** ((edges[1:] + edges[:-1]) / 2)).tolist(),
            y=(counts / len(logs)).tolist(),
            mode="lines",
            line={"color": COLOURS[weights], "shape": "hvh", "width": 2},
            name=weights,
        )
    figure.add_vline(1 / decoding["vocabulary"], line={"color": FAINT, "dash": "dash", "width": 1})
    figure.update_xaxes(type="log", title="softmax of the top token", exponentformat="power")
    figure.update_yaxes(title="share of neurons", tickformat=".0%")
    return look(figure, 340)


def percent(rate: dict[str, Any]) -> str:
    """A rate with its interval: `12 of 40 = 30% (18–45%)`."""
    return f"{rate['k']} of {rate['n']} = {short(rate)}" if rate["n"] else "none to count"


def short(rate: dict[str, Any]) -> str:
    """The same without its counts: `30% (18–45%)`."""
    return f"{rate['rate']:.0%} ({100 * rate['low']:.0f}–{rate['high']:.0%})" if rate["n"] else "–"


def band(x: list[float], low: np.ndarray, high: np.ndarray, colour: str) -> dict[str, Any]:
    """A filled band between two curves, as the arguments of a scatter trace."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return {
        "x": [*x, *reversed(x)],
        "y": [*low.tolist(), *reversed(high.tolist())],
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.22)",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def site_buttons(visible: list[list[bool]]) -> dict[str, Any]:
    """Buttons over a figure that show the traces of one site each."""
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 28},
        "buttons": [
            {"label": f"clamped at {site}", "method": "update", "args": [{"visible": shown}]}
            for site, shown in zip(SITES, visible, strict=True)
        ],
    }
