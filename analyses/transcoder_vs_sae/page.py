"""The report on transcoders beside SAEs: tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.shared.report import Page, look, table
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = {"transcoder": FOR, "SAE": AGAINST}
PUBLISHED = {
    "transcoder": [(82.7, 3.349), (44.0, 3.355), (27.5, 3.368)],
    "SAE": [(109.9, 3.351), (55.1, 3.360), (31.5, 3.368)],
}
"""L0 and cross-entropy in the paper, on layer 15 of Pythia-410M."""


def frontier(rows: Sequence[dict[str, Any]], measure: str, title: str, lines: dict[str, float]) -> go.Figure:
    """A measure against L0 on a logarithmic scale, one line for each kind of dictionary, with 95% intervals.

    Args:
        rows: results.
        measure: the key of the measure.
        title: of the axis.
        lines: values to mark, by name.
    """
    figure = go.Figure()
    for family, dash in (("k", "solid"), ("l1", "dot")):
        for kind, colour in COLOURS.items():
            own = [row for row in rows if row["kind"] == kind and row["sparsity"].startswith(f"{family}=")]
            own.sort(key=lambda row: row["l0"])
            if not own:
                continue
            ends = [row["intervals"][measure] for row in own]
            figure.add_scatter(
                x=[row["l0"] for row in own],
                y=[row[measure] for row in own],
                error_y={
                    "array": [high - row[measure] for row, (_, high) in zip(own, ends, strict=True)],
                    "arrayminus": [row[measure] - low for row, (low, _) in zip(own, ends, strict=True)],
                    "thickness": 1,
                    "width": 3,
                },
                customdata=[row["name"] for row in own],
                hovertemplate="%{customdata}<br>L0 %{x:.1f}<br>" + title + " %{y:.4f}<extra></extra>",
                mode="lines+markers",
                line={"color": colour, "width": 2.5, "dash": dash},
                name=f"{kind}, {'TopK' if family == 'k' else 'ReLU'}",
            )
    for name, value in lines.items():
        figure.add_hline(value, line={"color": FAINT, "width": 1, "dash": "dash"}, annotation_text=name)
    figure.update_xaxes(type="log", title="L0, active latents per token")
    figure.update_yaxes(title=title)
    return look(figure, 420)


def density_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """The density of each dictionary's latents, from the rarest to the commonest."""
    figure = go.Figure()
    for row in rows:
        shares = sorted(share for share in row["density"] if share > 0)
        step = max(len(shares) // 300, 1)
        figure.add_scatter(
            x=[1 - (len(shares) - place) / len(row["density"]) for place in range(0, len(shares), step)],
            y=shares[::step],
            mode="lines",
            line={"color": COLOURS[row["kind"]], "width": 1.5},
            name=row["name"],
        )
    figure.update_xaxes(title="share of the latents, rarest first", range=[0, 1])
    figure.update_yaxes(title="share of the tokens where active", type="log", exponentformat="power")
    return look(figure, 420)


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    plan, rows, source = results["plan"], results["rows"], results["provenance"]
    first = rows[0]
    page = Page(
        folder,
        "Transcoders beside sparse autoencoders",
        "Dunefsky, Chlenski and Nanda (2024) find that a transcoder, which computes an MLP's output from its input, is "
        "at equal L0 at least as faithful as a sparse autoencoder on that output. Here is the same comparison on layer "
        f"{plan['layer']} of {source['model']}: width {plan['width']:,}, {plan['tokens']:,} tokens each.",
    )
    verdicts = {kind: sum(one["better"] == kind for one in results["comparisons"]) for kind in COLOURS}
    undecided = len(results["comparisons"]) - sum(verdicts.values())
    page.section(
        "At equal sparsity",
        f"Of {len(results['comparisons'])} pairs, the transcoder recovers more of the loss in "
        f"{verdicts['transcoder']}, the SAE in {verdicts['SAE']}; in {undecided} the 95% intervals overlap. Compare "
        "the L0 of a pair before its fidelity: where it differs, read the curves below instead.",
    )
    columns = ["sparsity", "L0 transcoder", "L0 SAE", "loss recovered transcoder", "loss recovered SAE", "apart"]
    page.add(
        table(
            columns,
            [
                [one["sparsity"], *one["l0"].values(), *map(_four, one["loss_recovered"].values()), one["better"]]
                for one in results["comparisons"]
            ],
        )
    )
    lines = {"plain model": first["ce"]}
    page.section("The frontier")
    caption = f"On {first['tokens']:,} tokens of {first['texts']:,} held-out texts; bars are 95% intervals over texts."
    page.figure("ce", frontier(rows, "ce_spliced", "cross-entropy, nats", lines), caption)
    page.figure("loss_recovered", frontier(rows, "loss_recovered", "loss recovered", {"perfect": 1.0}), caption)
    page.figure("kl", frontier(rows, "kl", "KL(plain ‖ spliced), nats", {}), caption)
    page.figure("fvu", frontier(rows, "fvu", "variance of the MLP's output unexplained", {}), caption)
    page.figure("density", density_figure(rows), "Latents that are never active are left out.")
    page.section(
        "All figures",
        f"Cross-entropies in nats per token: plain model {first['ce']:.4f}, with the MLP's output set to zero "
        f"{first['ce_zero']:.4f}. Special tokens are neither spliced nor counted.",
    )
    page.add(
        table(
            ["dictionary", "L0", "FVU", "cosine", "cross-entropy", "loss recovered", "KL", "dead"],
            [
                [
                    row["name"],
                    row["l0"],
                    *(_four(row[key]) for key in ("fvu", "cosine", "ce_spliced")),
                    _interval(row, "loss_recovered"),
                    _interval(row, "kl"),
                    f"{row['dead']:.1%}",
                ]
                for row in rows
            ],
        )
    )
    page.section("What the paper reports", "Pythia-410M, layer 15, width ×32, 60M tokens, ReLU with an L1 penalty.")
    page.add(table(["kind", "L0", "cross-entropy"], [[k, x, _four(y)] for k, pts in PUBLISHED.items() for x, y in pts]))
    return page.write({key: value for key, value in source.items() if key != "plan"})


def _four(value: float) -> str:
    return f"{value:.4f}"


def _interval(row: dict[str, Any], measure: str) -> str:
    low, high = row["intervals"][measure]
    return f"{row[measure]:.4f} ({low:.4f} to {high:.4f})"
