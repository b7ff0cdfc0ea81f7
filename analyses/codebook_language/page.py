"""The report of `codebook_language.py`: tables and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.shared.report import Page, look, table
from workbench.figures.common import AGAINST, FAINT, FOR

COLOURS = (FOR, FAINT, AGAINST, "#7c8b93")


def write_page(folder: Path, results: dict[str, Any], methods: Sequence[str]) -> Path:
    """Write `index.html` and the figure's JSON."""
    plan = results["provenance"]["plan"]
    page = Page(
        folder,
        "A language model that runs through codebooks",
        f"SmolLM2-135M-Instruct with a codebook of {plan['codes']:,} codes on every head of {len(plan['layers'])} "
        f"layers, of which the {plan['k']} most similar take the place of what the head made (Tamkin, Taufeeque and "
        "Goodman 2023). Its own weights are as they were.",
    )
    page.section(
        "What the bottleneck costs",
        "Loss in nats and accuracy of the next token, on texts that were not trained on. The paper lost 3.84 points of "
        "accuracy on WikiText-103 and 1.36 on TinyStories, with models trained together with their codebooks.",
    )
    rows = [
        [
            where,
            f"{found['plain']['loss']:.3f}",
            f"{found['codebooks']['loss']:.3f}",
            f"{found['plain']['accuracy']:.2%}",
            f"{found['codebooks']['accuracy']:.2%}",
            f"{100 * (found['plain']['accuracy'] - found['codebooks']['accuracy']):.2f}",
        ]
        for where, found in results["cost"].items()
    ]
    page.add(table(["text", "loss, plain", "with codebooks", "accuracy, plain", "with codebooks", "points lost"], rows))
    topics = results["topics"]
    page.section(
        "Codes of topics",
        "The code that tells a topic's words best from all others, and the SAE latent that does. "
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
        f"{plan['k']}. The rivals are as strong as leaves texts as likely to the plain model.",
    )
    page.figure("steering", _bars(results, methods), "Share of texts on topic.")
    rows = []
    for topic, found in results["steering"].items():
        row = [topic, f"{results['unsteered']['codebooks']['on_topic'][topic]:.0%}"]
        for name in methods:
            row.append(
                f"{found[name]['on_topic']:.0%} ({found[name]['perplexity']:.0f}, {found[name]['distinct']:.2f})"
            )
        rows.append(row)
    page.add(table(["topic", "unsteered", *methods], rows))
    page.add(
        '<p class="note">In brackets: perplexity of the texts under the plain model, and the share of pairs of '
        "neighbouring tokens that differ. Unsteered, the plain model's own texts have a perplexity of "
        f"{results['unsteered']['plain']['perplexity']:.0f}, those of the codebook model "
        f"{results['unsteered']['codebooks']['perplexity']:.0f}.</p>"
    )
    for topic, found in results["steering"].items():
        page.details(f"A text of each method: {topic}", table(["", ""], [[n, found[n]["sample"]] for n in methods]))
    made = {key: value for key, value in results["provenance"].items() if key != "plan"}
    return page.write(made | {"plan": json.dumps(plan)})


def _bars(results: dict[str, Any], methods: Sequence[str]) -> go.Figure:
    """One group of bars for each topic."""
    figure = go.Figure()
    topics = list(results["steering"])
    base = results["unsteered"]["codebooks"]["on_topic"]
    figure.add_bar(x=topics, y=[base[topic] for topic in topics], name="unsteered", marker={"color": "#c9d2cc"})
    for name, colour in zip(methods, COLOURS, strict=True):
        values = [results["steering"][topic][name]["on_topic"] for topic in topics]
        figure.add_bar(x=topics, y=values, name=name, marker={"color": colour})
    figure.update_yaxes(title="share of texts on topic", range=[0, 1.02], tickformat=".0%")
    return look(figure, 420)
