"""README's rows on codebooks in a language model."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from analyses.codebook_language.plan import PROMPTS
from analyses.shared.published import span
from analyses.shared.study import Row

PAPER = "Tamkin et al. (arXiv 2310.17230)"


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Two rows: the cost of the codebooks, and steering."""
    plan = summary["provenance"]["plan"]
    points = {
        where: 100 * (row["plain"]["accuracy"] - row["codebooks"]["accuracy"]) for where, row in summary["cost"].items()
    }
    cost = ", ".join(f"{lost:.1f} points on {where}" for where, lost in points.items())
    return [
        Row(
            PAPER,
            "codebooks on attention, k 8, cost 1.4 (TinyStories) and 3.8 points (WikiText) of the accuracy of the next "
            "token",
            f"on all heads of {len(plan['layers'])} late layers, k {plan['k']}: {cost}",
        ),
        Row(PAPER, "forcing codes brings at least 60% of the texts to a topic for most topics", _steering(summary)),
    ]


def _steering(summary: Mapping[str, Any]) -> str:
    """Shares of texts on topic by each method, at which perplexity, and how varied the texts are."""
    topics, unsteered = summary["steering"].values(), summary["unsteered"]
    on = {name: [one[name]["on_topic"] for one in topics] for name in next(iter(topics)) if name != "latent"}
    reached = sum(share >= 0.6 for share in on["codes"])
    addition, random = on["activation addition"], max(on["random codes"])
    distinct = fmean(one["codes"]["distinct"] for one in topics)
    return (
        f"{reached} of {len(topics)} topics, fixed beforehand: {span(on['codes'], '.0%')} of "
        f"{len(PROMPTS) * summary['provenance']['plan']['samples']} texts (unsteered: at most "
        f"{max(unsteered['codebooks']['on_topic'].values()):.0%}, random codes: at most {random:.0%}), "
        f"at a perplexity of {span((one['codes']['perplexity'] for one in topics), '.0f')} (plain "
        f"{unsteered['plain']['perplexity']:.0f}); at equal perplexity an SAE latent brings "
        f"{span(on['SAE latent'], '.0%')}, activation addition {span(addition, '.0%')}, at least 90% for "
        f"{sum(share >= 0.9 for share in addition)}; a share of {distinct:.2f} "
        f"of the word pairs of a text under codes are distinct, of a plain one {unsteered['plain']['distinct']:.2f}"
    )
