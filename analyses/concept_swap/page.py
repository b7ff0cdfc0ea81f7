"""The report on swapped concepts: tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.concept_swap.rows import share
from analyses.shared.report import Page, look, table
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = {"jacobian": FOR, "logit": AGAINST, "random": FAINT}
NAMES = {"jacobian": "Jacobian lens", "logit": "logit lens", "random": "random directions"}


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    page = Page(
        folder,
        "One concept in another's place",
        "Gurnee et al. (2026) exchange the coordinates of the stream along two Jacobian-lens vectors and read the "
        "answer. Here each pair was fixed before anything was measured, a swap acts behind one layer, and random "
        "directions of the same lengths and angle do the same.",
    )
    page.section(
        "How often a swap has its way",
        f"Of {results['pairs']} pairs {results['asked']} have concepts of a single token; in {results['known']} of "
        "these the model prefers the prompt's own answer to the wanted one, and only they count. Shares with 95% "
        "intervals over pairs.",
    )
    for amount in dict.fromkeys(row["amount"] for row in results["by_layer"]):
        rows = [row for row in results["by_layer"] if row["amount"] == amount]
        page.figure(f"way-{amount:g}", way_figure(rows), f"The wanted answer passes the own one; amount {amount:g}.")
    columns = ["directions", "behind layer", "amount", "has its way", "is the likeliest token", "logits' change"]
    page.add(table(columns, [_cells(row) for row in results["by_layer"]]))
    best = results["chosen"]
    page.section(
        "Chosen on one half, measured on the other",
        f"On every other pair most swaps have their way behind layer {best['layer']} with amount {best['amount']:g}. "
        f"On the other {best['pairs']} pairs:",
    )
    halves = [_cells({"by": by, "layer": best["layer"], "amount": best["amount"], **best[by]}) for by in NAMES]
    page.add(table(columns, halves))
    page.section(
        "What each lens predicts", "KL of the model's prediction from the lens's, by layer, in nats per token."
    )
    page.figure("kl", kl_figure(results["kl"]), "On the last quarter of the bundled stories.")
    source = results["provenance"]
    return page.write({key: value for key, value in source.items() if key not in ("plan", "lens")} | source["plan"])


def way_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Shares by layer, a line for each kind of direction."""
    figure = go.Figure()
    for by, colour in COLOURS.items():
        own = [row for row in rows if row["by"] == by]
        figure.add_scatter(
            x=[row["layer"] for row in own],
            y=[row["way"][0] for row in own],
            error_y={
                "array": [row["way"][2] - row["way"][0] for row in own],
                "arrayminus": [row["way"][0] - row["way"][1] for row in own],
                "symmetric": False,
            },
            mode="lines+markers",
            name=NAMES[by],
            line={"color": colour},
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="share of pairs", tickformat=".0%", range=[0, 1])
    return look(figure, 320)


def kl_figure(lenses: Sequence[dict[str, Any]]) -> go.Figure:
    """KL by layer, a line for each lens, and the logit lens."""
    figure = go.Figure()
    for one in lenses:
        figure.add_scatter(x=one["layers"], y=one["kl"], mode="lines+markers", name=f"{one['kind']} lens")
    if lenses:
        first = lenses[0]
        figure.add_scatter(
            x=first["layers"], y=first["logit_kl"], mode="lines", name="logit lens", line={"color": FAINT}
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="nats per token", rangemode="tozero")
    return look(figure, 320)


def _cells(row: dict[str, Any]) -> list[str]:
    change = row["change"]
    shown = f"{change[0]:+.2f} ({change[1]:+.2f} to {change[2]:+.2f})"
    return [NAMES[row["by"]], f"{row['layer']}", f"{row['amount']:g}", share(row["way"]), share(row["wins"]), shown]
