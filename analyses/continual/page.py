"""The report on learning kinds of text one after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch

from analyses.continual.learners import AS_MIXED, COLOURS, MIXED, ORDERED
from analyses.shared.report import Page, look, table
from workbench.figures.common import FAINT


def means(results: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of the accuracy on test texts, by learner and way."""
    accuracy: dict[str, dict[str, tuple[float, float]]] = {}
    for name, ways in results["learners"].items():
        for way, runs in ways.items():
            values = torch.tensor([one["test"] for one in runs])
            accuracy.setdefault(name, {})[way] = float(values.mean()), float(values.std())
    return accuracy


def curves(results: dict[str, Any]) -> go.Figure:
    """Accuracy on the kinds seen so far, one line for each learner."""
    figure = go.Figure()
    for name, ways in results["learners"].items():
        values = torch.tensor([one["curve"] for one in ways[ORDERED]]).mean(0).tolist()
        figure.add_scatter(
            x=list(range(1, len(values) + 1)), y=values, mode="lines+markers", name=name, line={"color": COLOURS[name]}
        )
    count = len(results["kinds"])
    figure.add_scatter(
        x=list(range(1, count + 1)),
        y=[1 / n for n in range(1, count + 1)],
        mode="lines",
        name="chance",
        line={"color": FAINT, "dash": "dash"},
    )
    figure.update_xaxes(title="kinds seen so far")
    figure.update_yaxes(title="accuracy on texts of these kinds", range=[0, 1.02])
    return look(figure, 420)


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figure's JSON."""
    accuracy, plan = means(results), results["provenance"]["plan"]
    page = Page(
        folder,
        "Learning kinds of text one after another",
        "A discrete key-value bottleneck (Träuble et al. 2022) beside a linear probe and an MLP, on the same frozen "
        f"activations of {results['provenance']['model']}: {len(results['kinds'])} kinds of text, each learned before "
        "the next begins, without a mark where one ends.",
    )
    page.section(
        "Accuracy over all kinds, afterwards",
        f"Mean and standard deviation over {plan['seeds']} orders, on texts that were not learned from. Chance is "
        f"{1 / len(results['kinds']):.1%}.",
    )
    rows = [
        [name, *(f"{accuracy[name][way][0]:.1%} ± {accuracy[name][way][1]:.1%}" for way in (ORDERED, AS_MIXED, MIXED))]
        for name in accuracy
    ]
    page.add(table(["learner", ORDERED, AS_MIXED, MIXED], rows))
    page.figure("curves", curves(results), "Mean over orders, on the texts that learning rates were chosen on.")
    source = {key: value for key, value in results["provenance"].items() if key != "plan"}
    return page.write(source | {"plan": json.dumps(plan)})
