"""The report on the greater-than task: tables and figures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.greater_than.task import PUBLISHED
from analyses.shared.report import Page, look, table, tokens
from workbench.figures.common import AGAINST, FAINT, FOR


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    source, plain = results["provenance"], results["model"]
    page = Page(
        folder,
        "Greater-than: a case study with transcoders",
        "Dunefsky, Chlenski and Nanda (2024) follow how GPT-2 small completes years. SmolLM2 writes every digit as a "
        "token of its own, so that the question here is whether the first differing digit, the decade, is above that "
        f"of the start year: <code>{html.escape(results['example'])}</code>",
    )
    page.section(
        "How well the model does it",
        f"P-difference: probability of digits above the start year's decade, less that of digits below; mean over "
        f"{source['plan']['prompts']} prompts, with its standard error. A transcoder stands in for its MLP, or the MLP "
        "writes nothing, from the second token on.",
    )
    rows = [["the model", *_cells(plain), ""]]
    for one in results["mlps"]:
        rows.append([f"{one['name']} in place of its MLP", *_cells(one["transcoder"]), *_cells(one["ablated"])[:1]])
    rows.append(
        [f"all {len(results['mlps'])} in place of their MLPs", *_cells(results["all"]), *_cells(results["none"])[:1]]
    )
    columns = ["", "P-difference", "probability on digits", "best digit not below", "P-difference without the MLP"]
    page.add(table(columns, rows))
    page.add(
        table(
            ["the paper, GPT-2 small (years of two tokens)", "P-difference"],
            [[name, f"{value:.3f}"] for name, value in PUBLISHED.items()],
        )
    )
    page.figure(
        "digits",
        digits_figure(plain["by_digit"], results["by_decade"]["decade"]),
        "The model's probability of each digit (columns) for each decade of the start year (rows).",
    )
    _latents(page, results)
    _words(page, results)
    return page.write(
        {key: value for key, value in source.items() if key not in ("plan", "transcoders")} | source["plan"]
    )


def _latents(page: Page, results: dict[str, Any]) -> None:
    carriers = results["carriers"]
    page.section(
        "Latents behind it",
        f"Attribution graphs of {len(carriers['graphs'])} prompts, for the logit of the digit right above the "
        "decade less that of the digit right below. Effects are means over these prompts, summed over positions: "
        "within the graph (attention and norms as on the prompt), and if everything responds.",
    )
    columns = ["latent", "effect", "if all responds", "of it on the decade's token", "nodes"]
    for title, key in (("With the largest effects", "latents"), ("On the start year's decade", "on_decade")):
        page.add(f"<h3>{title}</h3>")
        rows = [
            [one["feature"], f"{one['effect']:+.4f}", f"{one['free']:+.4f}", f"{one['on_decade']:+.4f}", one["nodes"]]
            for one in carriers[key]
        ]
        page.add(table(columns, rows))
    graphs = carriers["graphs"]
    correlations = []
    for regime in ("direct", "latents", "free"):
        values = [one["pearson"][regime] for one in graphs]
        correlations.append(f"{regime} {_mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    page.add(
        "<h3>Do the graphs predict interventions?</h3>",
        "<p>The ten latents with the largest effects were taken out of each prompt, one at a time. Correlation of the "
        f"predicted with the measured change, mean and range over prompts: {'; '.join(correlations)}. <i>direct</i>: "
        "only the edge to the target; <i>latents</i>: later latents respond; <i>free</i>: everything does, predicted "
        "by the full gradient. The graph's own prediction, which holds attention and norms, correlates with the free "
        "one by "
        f"{_mean([one['frozen_as_free'] for one in graphs]):.3f}. The sums of all sources miss what nodes read by at "
        f"most {max(one['completeness'] for one in graphs):.1e}, relative.</p>",
    )
    kinds = graphs[0]["shares"]
    rows = [[kind, f"{_mean([one['shares'][kind] for one in graphs]):.1%}"] for kind in kinds]
    page.add("<p>Where the influence on the target comes from in the end:</p>", table(["source", "share"], rows))


def _words(page: Page, results: dict[str, Any]) -> None:
    latent = results["words"]
    read = latent["deembedding"]
    page.section(
        f"{latent['feature']} in words",
        "The latent with the largest effect from the start year's decade, read through the embeddings and the LM head "
        "alone: no prompt is run.",
    )
    lists = [("the token itself raises it", read["drives"]), ("the token itself lowers it", read["opposes"])]
    lists += [(f"head {one['head']} of layer {one['layer']} looks at", one["drives"]) for one in read["heads"]]
    lists += [("it raises the logits of", read["promotes"]), ("it lowers the logits of", read["suppresses"])]
    page.add(table(["", "tokens"], [[title, tokens(one["tokens"])] for title, one in lists]))
    page.figure(
        "digits-deembedded",
        deembedded_figure(latent["digits"]),
        "Against the ten digits: what each adds to the latent by its own embedding, or through the four heads that "
        "tell the digits apart most; and what the latent adds to the digits' logits. Each line less its mean, divided "
        "by its largest size.",
    )
    page.figure(
        "by-decade",
        activity_figure(results["by_decade"]),
        "Its mean value on the tokens of the start year and at the end of the prompt, by the start year's decade.",
    )


def digits_figure(rows: Sequence[Sequence[float]], decades: Sequence[Any]) -> go.Figure:
    """Probabilities of the ten digits for each decade of the start year."""
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in rows],
            x=list(range(10)),
            y=[f"{decade}" for decade in range(2, 2 + len(decades))],
            colorscale=[[0, "#ffffff"], [1, FOR]],
            zmin=0,
            hovertemplate="decade %{y}, digit %{x}<br>%{z:.1%}<extra></extra>",
            colorbar={"tickformat": ".0%", "thickness": 12},
        )
    )
    figure.update_xaxes(title="next digit", dtick=1)
    figure.update_yaxes(title="start year's decade", autorange="reversed", type="category")
    return look(figure, 320, top=20)


def deembedded_figure(digits: Mapping[str, Any]) -> go.Figure:
    """Scores of the ten digits, each line centred and scaled to its largest."""
    figure = go.Figure()
    lines = [("own embedding", digits["direct"], FAINT), ("writes", digits["writes"], AGAINST)]
    lines += [(f"head {one['layer']}.{one['head']}", one["scores"], FOR) for one in digits["heads"]]
    for number, (name, scores, colour) in enumerate(lines):
        middle = _mean(scores)
        size = max(abs(score - middle) for score in scores) or 1.0
        figure.add_scatter(
            x=list(range(10)),
            y=[(score - middle) / size for score in scores],
            customdata=scores,
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": ("solid", "dot", "dash", "dashdot")[max(number - 2, 0) % 4]},
            hovertemplate=name + ", digit %{x}<br>score %{customdata:.3f}<extra></extra>",
        )
    figure.update_xaxes(title="digit", dtick=1)
    return look(figure, 380)


def activity_figure(values: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """A latent's mean value by the start year's decade, a line for each place."""
    figure = go.Figure()
    for (name, row), colour in zip(values.items(), (FOR, AGAINST, FAINT), strict=True):
        figure.add_scatter(
            x=list(range(2, 2 + len(row))), y=list(row), mode="lines+markers", name=name, line={"color": colour}
        )
    figure.update_xaxes(title="start year's decade", dtick=1)
    figure.update_yaxes(title="mean value", rangemode="tozero")
    return look(figure, 320)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['p_difference']:.3f} ± {row['standard_error']:.3f}",
        f"{row['digits']:.1%}",
        f"{row['not_below']:.0%}",
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
