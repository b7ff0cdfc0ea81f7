"""The report on codebooks in a language model: tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.codebook_language.plan import METHODS
from analyses.shared.report import Page, look, table
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = (FOR, FAINT, AGAINST, "#7c8b93")


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figure's JSON."""
    plan = results["provenance"]["plan"]
    page = Page(
        folder,
        "A language model that runs through codebooks",
        f"SmolLM2-135M-Instruct with a codebook of {plan['codes']:,} codes on every head of {len(plan['layers'])} "
        f"layers, of which the {plan['k']} most similar replace the head's output (Tamkin, Taufeeque and Goodman "
        "2023). Its own weights are unchanged.",
    )
    page.section(
        "What the bottleneck costs",
        "Loss in nats and accuracy of the next token, on texts that were not trained on. The paper lost 3.84 points of "
        "accuracy on WikiText-103 and 1.36 on TinyStories, with models trained together with their codebooks.",
    )
    rows = [
        [
            where,
            f"{row['plain']['loss']:.3f}",
            f"{row['codebooks']['loss']:.3f}",
            f"{row['plain']['accuracy']:.2%}",
            f"{row['codebooks']['accuracy']:.2%}",
            f"{100 * (row['plain']['accuracy'] - row['codebooks']['accuracy']):.2f}",
        ]
        for where, row in results["cost"].items()
    ]
    page.add(table(["text", "loss, plain", "with codebooks", "accuracy, plain", "with codebooks", "points lost"], rows))
    topics = results["topics"]
    page.section(
        "Codes of topics",
        "The code that marks a topic's words best, and the SAE latent that does. "
        f"{topics['dead']:.1%} of all codes were never used in {plan['searched']:,} tokens.",
    )
    rows = [
        [
            topic,
            topics["matches"][topic],
            topics["codes"][topic][0]["feature"],
            f"{topics['codes'][topic][0]['precision']:.2f}",
            f"{topics['codes'][topic][0]['recall']:.2f}",
            results["steering"][topic]["latent"]["feature"],
            f"{results['steering'][topic]['latent']['precision']:.2f}",
            f"{results['steering'][topic]['latent']['recall']:.2f}",
        ]
        for topic in results["steering"]
    ]
    columns = ["topic", "words", "best code", "precision", "recall", "best SAE latent", "precision", "recall"]
    page.add(table(columns, rows))
    page.section(
        "Steering",
        f"4 prompts, {plan['samples']} texts of {plan['length']} tokens of each, temperature 1: the share of texts "
        "with a word of the topic. While the text is written, codes are forced, each in place of its head's least "
        f"similar one: the {plan['forced']} that raise the topic's words most, to first order, of each head at most "
        f"{plan['k']}. Each baseline has the strength at which its texts are as likely to the plain model.",
    )
    page.figure("steering", _bars(results), "Share of texts on topic.")
    rows = []
    for topic, by_method in results["steering"].items():
        row = [topic, f"{results['unsteered']['codebooks']['on_topic'][topic]:.0%}"]
        for name in METHODS:
            one = by_method[name]
            row.append(f"{one['on_topic']:.0%} ({one['perplexity']:.0f}, {one['distinct']:.2f})")
        rows.append(row)
    page.add(table(["topic", "unsteered", *METHODS], rows))
    page.add(
        '<p class="note">In brackets: perplexity of the texts under the plain model, and the share of pairs of '
        "neighbouring tokens that differ. Unsteered, the plain model's own texts have a perplexity of "
        f"{results['unsteered']['plain']['perplexity']:.0f}, those of the codebook model "
        f"{results['unsteered']['codebooks']['perplexity']:.0f}.</p>"
    )
    for topic, by_method in results["steering"].items():
        samples = [[name, by_method[name]["sample"]] for name in METHODS]
        page.details(f"A text of each method: {topic}", table(["", ""], samples))
    source = {key: value for key, value in results["provenance"].items() if key != "plan"}
    return page.write(source | {"plan": json.dumps(plan)})


def _bars(results: dict[str, Any]) -> go.Figure:
    """One group of bars for each topic."""
    figure = go.Figure()
    topics = list(results["steering"])
    base = results["unsteered"]["codebooks"]["on_topic"]
    figure.add_bar(x=topics, y=[base[topic] for topic in topics], name="unsteered", marker={"color": "#c9d2cc"})
    for name, colour in zip(METHODS, COLOURS, strict=True):
        values = [results["steering"][topic][name]["on_topic"] for topic in topics]
        figure.add_bar(x=topics, y=values, name=name, marker={"color": colour})
    figure.update_yaxes(title="share of texts on topic", range=[0, 1.02], tickformat=".0%")
    return look(figure, 420)
