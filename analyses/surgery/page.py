"""The report on surgery: claims with their verdicts, cost curves, and the table of all operations."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from analyses.shared.report import Cell, Page, look, table
from analyses.surgery.claims import Claim, claims, mean_accuracy
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = [FOR, AGAINST, "#7c8b93", "#a86b00", "#5a4fcf"]


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    source, plain = results["provenance"], results["plain"]
    plan = source["plan"]
    page = Page(
        folder,
        "What surgery costs",
        f"Every operation on {html.escape(source['model'])}, measured on text that nothing was calibrated, searched or "
        "healed on: the other half of the articles, and bundled stories. KL is from the plain model's predictions to "
        "the changed model's, in nats.",
    )
    page.section("Claims of the papers", "“Holds” is decided by the rule in the last column, for this model only.")
    rows = [[one.operation, one.paper, one.claimed, one.here, _verdict(one), one.rule] for one in claims(results)]
    page.add(table(["operation", "paper", "claim", "here", "", "rule"], rows))
    _searches(page, results)
    _dare(page, results["dare"])
    page.section(
        "Everything",
        f"The plain model's perplexity is {plain['perplexity_articles']:.2f} on articles and "
        f"{plain['perplexity_stories']:.2f} on stories. Healing is a fine-tune on {plan['heal_tokens']:,} tokens of "
        "the half that is calibrated on, which also teaches the model what articles are like: beside the plain model's "
        "perplexity a healed one looks better than it is, and its KL says more.",
    )
    columns = ["operation", "setting", "what is left", "KL, articles", "perplexity", "KL, stories", "perplexity "]
    keys = ("kl_articles", "perplexity_articles", "kl_stories", "perplexity_stories")
    lines = [
        [row["operation"], row["setting"], row["budget"], *(_short(row[key]) for key in keys)]
        for row in results["rows"]
    ]
    page.add(table(columns, lines))
    _experts(page, results["experts"], plan["keep"])
    _labels(page, results["labels"], plan)
    without_plan = {key: value for key, value in source.items() if key != "plan"}
    return page.write(without_plan | {"plan": json.dumps(plan)})


def _verdict(claim: Claim) -> Cell:
    return Cell('<span class="yes">holds</span>' if claim.holds else '<span class="no">does not</span>')


def _short(value: float) -> str:
    return f"{value:,.4f}" if value < 1 else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _searches(page: Page, results: dict[str, Any]) -> None:
    """Add the KL of each search, against the share that is skipped and against the positions run."""
    rows = [row for row in results["rows"] if row["operation"] == "skip sublayers" and "method" in row]
    centre = next(row["share"] for row in rows if row["method"] == "greedy")
    first = [row for row in rows if row["halves"] == rows[0]["halves"]]
    central, others = ([row for row in rows if (row["share"] == centre) is at] for at in (True, False))
    methods = ("evopress", "greedy", "ranked", "uniform")
    by_share, by_positions = go.Figure(), go.Figure()
    for colour, method in zip(COLOURS, methods, strict=False):
        own = sorted((row for row in first if row["method"] == method), key=lambda row: row["passes"])
        points = sorted({row["share"]: row["kl_many"] for row in reversed(own)}.items())  # fewest, first seed
        _line(by_share, [(100 * share, kl) for share, kl in points], method, colour)
        at_centre = [row for row in central if row["method"] == method]
        numbers = {row["passes"] for row in at_centre}
        runs = [[row for row in at_centre if row["passes"] == passes] for passes in numbers]
        means = [[fmean(row[key] for row in rows) for key in ("token_forwards", "kl_many")] for rows in runs]
        _line(by_positions, sorted(means), method, colour)
    by_share.update_xaxes(title="sublayers skipped, %")
    by_positions.update_xaxes(title="positions run", rangemode="tozero")
    for figure in (by_share, by_positions):
        figure.update_yaxes(title="KL, nats", type="log")
    page.section(
        "Skipping",
        "Attention and MLP sublayers left out, found by searches on the same calibration text. At the share in the "
        "middle EvoPress may run as many positions as the greedy search did; a backward pass, for slopes, counts as "
        "one run more.",
    )
    here, elsewhere = (min(row["passes"] for row in some) for some in (central, others))
    page.figure(
        "skipping",
        look(by_share, 400),
        f"On articles that no search used; {centre:.0%} with {here:,} positions at most, other shares with "
        f"{elsewhere:,}.",
    )
    choices = len({row["halves"] for row in rows})
    page.figure(
        "positions",
        look(by_positions, 400),
        f"{centre:.0%} skipped, on articles that no search used; means over {choices} choices of articles, of "
        "the uniform search over one.",
    )


def _line(figure: go.Figure, points: Sequence[Sequence[float]], name: str, colour: str) -> None:
    """Add a line through points, or a mark where there is one."""
    x, y = ([point[axis] for point in points] for axis in (0, 1))
    figure.add_scatter(x=x, y=y, mode="lines+markers", name=name, line={"color": colour})


def _dare(page: Page, dare: dict[str, Any]) -> None:
    """Add the accuracy against the drop rate, with and without rescaling."""
    figure = go.Figure()
    for rescale, colour, name in ((True, FOR, "rescaled"), (False, AGAINST, "not rescaled")):
        ps = sorted({one["p"] for one in dare["drops"] if one["rescale"] == rescale and one["p"]})
        values = [dare["tuned"], *(mean_accuracy(dare, p, rescale) for p in ps)]
        ps = [0.0, *ps]
        figure.add_scatter(x=ps, y=values, mode="lines+markers", name=name, line={"color": colour})
    figure.add_hline(dare["base"], line={"color": FAINT, "dash": "dash"}, annotation_text="before fine-tuning")
    figure.update_xaxes(title="drop rate p")
    figure.update_yaxes(title="accuracy", range=[0, 1.02])
    page.section(
        "DARE",
        f"A sibling of the model learned to name which of {round(1 / dare['chance'])} kinds a text's beginning is of. "
        f"Most of the change of its weights is dropped again. Accuracy on {dare['texts']} held-out texts.",
    )
    page.figure("dare", look(figure, 380), "Accuracy with what is left of the delta.")


def _experts(page: Page, cut: dict[str, dict[str, float]], keep: float) -> None:
    names = [name for name in cut if name != "all"]
    page.section(
        "Experts",
        f"The {keep:.0%} of each layer's neurons that texts of a kind use most; KL to the whole model on other texts "
        "of each kind.",
    )
    rows = [[f"neurons of {name}", *(_short(cut[name][other]) for other in names)] for name in cut]
    page.add(table(["", *(f"on {name}" for name in names)], rows))


def _labels(page: Page, scores: dict[str, Any], plan: dict[str, Any]) -> None:
    page.section(
        "Labelling",
        "Which mark, a comma or a full stop, stood behind each word of a text in lower case: F1 and accuracy after the "
        f"same fine-tune on {plan['label_tokens']:,} tokens, by the layers without a causal mask.",
    )
    rows = [[name, f"{one['f1']:.3f}", f"{one['accuracy']:.3f}", one["words"]] for name, one in scores.items()]
    page.add(table(["layers without a causal mask", "F1", "accuracy", "words"], rows))
