"""The report on TokFSM: tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.shared.report import Page, look, table
from analyses.tokfsm.plan import PUBLISHED
from workbench.figures.common import AGAINST, FAINT, FOR

NAMES = {"plain": "no codebook", "attention": "attention, k = 1", "mlp": "MLP, k = 1", "both": "attention + MLP, k = 1"}


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    models, source = results["models"], results["provenance"]
    page = Page(
        folder,
        "Codebooks on a language whose truth is known",
        "Small transformers learn the language of a random finite state machine (Tamkin, Taufeeque and Goodman 2023). "
        "Three of them run through codebooks: every head's output, or every MLP's, is replaced by the most similar of "
        "a fixed set of codes. What does that cost, do the codes stand for states, and can they be forced?",
    )
    page.section(
        "What the bottleneck costs",
        "Loss in nats per token and accuracy of the next token on walks that were not trained on; accuracy of the next "
        "state is how often the model, writing greedily, goes on along an edge of the machine.",
    )
    rows = []
    for name, measured in models.items():
        language, paper = measured["language"], PUBLISHED.get(name)
        dead = measured.get("dead", {})
        rows.append(
            [
                NAMES[name],
                f"{language['loss']:.4f}",
                f"{language['accuracy']:.2%}",
                f"{language['transition']:.2%}",
                f"{sum(dead.values()) / len(dead):.1%}" if dead else "",
                "" if paper is None else f"{paper[0]:g} / {paper[1]:g}% / {paper[2]:g}%",
            ]
        )
    columns = ["model", "loss", "next token", "next state", "codes never used", "the paper: loss / token / state"]
    page.add(table(columns, rows))
    for name, measured in models.items():
        if "state_codes" in measured:
            _codes(page, name, measured)
    return page.write({key: value for key, value in source.items() if key != "plan"} | source["plan"])


def _codes(page: Page, name: str, measured: dict[str, Any]) -> None:
    """Add the section on one model's codes: which states they stand for, and the effect of forcing them."""
    codes, steering = measured["state_codes"], measured["steering"]
    page.section(
        f"Codes of the model with {NAMES[name]}",
        f"For each state the most precise code was chosen on some walks and judged on others: mean precision "
        f"{codes['precision']:.3f}. The most precise neuron of the plain model, thresholded to the same recall and "
        f"chosen in the same way, has {codes['neuron_precision']:.3f} (the paper: 0.971 and 0.705).",
    )
    page.figure(f"{name}-precision", _precision(codes["states"]), "One point for each state.")
    places = []
    for point, values in codes["by_place"].items():
        apart = measured["divergence"][point]
        by_head = ", ".join(f"{value:.2f}" for value in values)
        places.append([point, by_head, f"{apart['shared']:.3f}", f"{apart['random']:.3f}", apart["pairs"]])
    columns = ["where", "mean precision, by head", "divergence, one code", "any two states", "pairs"]
    page.add(table(columns, places))
    page.add(
        "<p>Precision is that of each code for its best state, weighted by how often it is active. Divergence "
        "(Jensen–Shannon, bits) compares what may follow two states: those that share their commonest code, and any "
        "two.</p>"
    )
    page.add("<h3>Forcing another state's codes on the last state of a walk</h3>")
    rows = [
        [label, f"{steering[kind]['target']:.1%}", f"{steering[kind]['sampled']:.1%}", f"{steering[kind]['own']:.1%}"]
        for kind, label in (("plain", "nothing forced"), ("forced", "that state's codes"), ("random", "random codes"))
    ]
    columns = ["", "probability on its edges", "samples on its edges", "probability on the walk's own edges"]
    page.add(table(columns, rows), f"<p>By chance {steering['chance']:.0%} would be on its edges.</p>")


def _precision(states: list[dict[str, Any]]) -> go.Figure:
    """Precision of each state's code and neuron, from best to worst."""
    figure = go.Figure()
    for label, colour, values in (
        ("code", FOR, [row["precision"] for row in states]),
        ("neuron at the same recall", AGAINST, [row["neuron"]["precision"] for row in states]),
    ):
        figure.add_scatter(y=sorted(values, reverse=True), mode="lines+markers", name=label, line={"color": colour})
    figure.add_hline(1 / len(states), line={"color": FAINT, "dash": "dash"}, annotation_text="a code for any state")
    figure.update_xaxes(title="states, best first")
    figure.update_yaxes(title="precision", range=[0, 1.02])
    return look(figure, 380)
