"""The report on the sparsing law: verdicts on the paper's findings, and the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.shared.report import Cell, Page, look, table
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = {"relu": FOR, "silu": AGAINST, "polyrelu": "#8a6fb0", "series": "#b08a2e"}
NAMES = {"relu": "ReLU", "silu": "SiLU", "polyrelu": "PolyReLU", "series": "series of two SiLUs"}
LAWS = {"power": "A0 - c / D^α", "log-space power": "exp(b - c D^α) + A0"}
MARKS = {"reproduced": "yes", "partly": "partly", "not reproduced": "no", "out of reach": "open"}


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    runs, source = results["runs"], results["provenance"]
    plan = source["plan"]
    page = Page(
        folder,
        "Do neurons grow idle with training?",
        "Small transformers learn stories with different activation functions (Luo et al. 2024). How many "
        "neurons can be left out for each token before perplexity rises by "
        f"{plan['p']:.0%}? The others are called active.",
    )
    page.section("The paper's findings, here")
    rows = [[one["finding"], one["paper"], _mark(one["verdict"]), one["figures"]] for one in results["findings"]]
    page.add(table(["", "the paper", "here", "figures"], rows))
    page.add(
        '<p class="note">The paper trains models of 0.1 to 2.4 billion weights on up to hundreds of billions of '
        f"tokens. These have {min(run['weights'] for run in runs.values()):,} to "
        f"{max(run['weights'] for run in runs.values()):,} weights in their layers and see "
        f"{max(plan['points']):,} tokens: what is not reproduced here may well hold there, and the reverse.</p>"
    )
    base = next(iter(runs)).split("-")[1]
    page.section("Over the training", "The base shape, with each activation function; lines are the fitted laws.")
    firsts = {name: run for name, run in runs.items() if name.endswith(f"-{base}-0")}
    page.figure("data", _over_data(firsts), "Bars are 95% confidence intervals over texts.")
    page.figure("losses", _losses(firsts), "Loss on texts that were not learned from.")
    page.section("Shapes and sizes", "The share of active neurons at the end of each training.")
    page.figure("shapes", _shapes(runs), "Point at a mark for the shape, width times depth.")
    page.section("The laws")
    fitted = []
    for name, run in runs.items():
        for law, fit in run["fits"].items():
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in fit["numbers"].items())
            aic = "–" if fit["aic"] is None else f"{fit['aic']:.1f}"
            fitted.append([name, LAWS[law], numbers, f"{fit['rms']:.4f}", f"{fit['r2']:.3f}", aic])
    page.add(table(["run", "law (D in millions of tokens)", "numbers", "rms residual", "R²", "AIC"], fitted))
    residuals = [
        [name, law, ", ".join(f"{one:+.4f}" for one in fit["residuals"])]
        for name, run in runs.items()
        for law, fit in run["fits"].items()
    ]
    page.details("Residuals, point by point", table(["run", "law", "measured less fitted"], residuals))
    page.section("Every run")
    rows = [
        [
            name,
            run["weights"],
            f"{run['points'][0]['active']:.3f}",
            f"{run['points'][-1]['active']:.3f}",
            f"{run['points'][-1]['low']:.3f} to {run['points'][-1]['high']:.3f}",
            f"{run['points'][-1]['nonzero']:.3f}",
            f"{run['points'][-1]['loss']:.4f}",
        ]
        for name, run in runs.items()
    ]
    page.add(table(["run", "weights", "active at first", "at the end", "95%", "not zero", "loss"], rows))
    return page.write({key: value for key, value in source.items() if key != "plan"} | plan)


def _mark(verdict: str) -> Cell:
    return Cell(f'<span class="{MARKS[verdict]}">{verdict}</span>')


def _over_data(runs: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    for run in runs.values():
        points, colour = run["points"], COLOURS[run["activation"]]
        tokens = [one["tokens"] for one in points]
        figure.add_scatter(
            x=tokens,
            y=[one["active"] for one in points],
            error_y={
                "array": [one["high"] - one["active"] for one in points],
                "arrayminus": [one["active"] - one["low"] for one in points],
                "thickness": 1,
            },
            mode="markers",
            name=NAMES[run["activation"]],
            marker={"color": colour, "size": 8},
        )
        law = min(run["fits"], key=lambda law: run["fits"][law]["rms"])
        figure.add_scatter(
            x=tokens, y=run["fits"][law]["fitted"], mode="lines", line={"color": colour}, showlegend=False, name=law
        )
    figure.update_xaxes(title="tokens", type="log")
    figure.update_yaxes(title="share of active neurons")
    return look(figure, 420)


def _losses(runs: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    for run in runs.values():
        figure.add_scatter(
            x=[one["tokens"] for one in run["points"]],
            y=[one["loss"] for one in run["points"]],
            mode="lines+markers",
            name=NAMES[run["activation"]],
            line={"color": COLOURS[run["activation"]]},
        )
    figure.update_xaxes(title="tokens", type="log")
    figure.update_yaxes(title="nats per token")
    return look(figure, 320)


def _shapes(runs: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    for activation in ("relu", "silu"):
        mine = {name: run for name, run in runs.items() if run["activation"] == activation}
        figure.add_scatter(
            x=[run["ratio"] for run in mine.values()],
            y=[run["points"][-1]["active"] for run in mine.values()],
            mode="markers",
            name=NAMES[activation],
            marker={
                "color": COLOURS[activation],
                "size": [8 + 8 * run["weights"] / 1e6 for run in mine.values()],
                "line": {"color": FAINT, "width": 1},
            },
            text=[f"{run['d_model']} x {run['layers']}, {run['weights']:,} weights" for run in mine.values()],
        )
    figure.update_xaxes(title="width over depth")
    figure.update_yaxes(title="share of active neurons")
    return look(figure, 380)
