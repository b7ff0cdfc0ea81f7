"""README's rows on neurons read through the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.neuron_decoding.claims import MARKS, clamping_verdict, paired_p
from analyses.shared.study import Row

PAPER = "Davies (arXiv 2501.02688)"


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Three rows: specialised neurons, clamping, the favourite animal."""
    counts, up = summary["concept_counts"], summary["dose_summary"]["all"]["up"]
    neurons, by_chance = counts["specialised"], counts["null_specialised"]
    more = paired_p(counts["only_neurons"], counts["only_null"]) < 0.05
    verdict = "more than chance" if more else "no more than chance"
    verdict += ", but not most" if neurons["rate"] < 0.5 else " and most"
    pooled = summary["favourite"]["pooled"]["greedy"]
    holds, chance = MARKS[clamping_verdict(summary["dose_summary"])], summary["dose_summary"]["chance"]
    animals = len(summary["favourite"]["animals"])
    clamped, fluent = pooled["paper clamped"]["success"], pooled["paper clamped"]["fluent_success"]
    plain, random = pooled["plain"]["success"], pooled["paper random"]["success"]
    return [
        Row(
            PAPER,
            "the LM head names neurons specialised in a concept",
            f"for {neurons['k']} of {neurons['n']} concepts fixed beforehand; among as many random vectors for "
            f"{by_chance['k']}: {verdict}",
        ),
        Row(
            PAPER,
            "clamping one moves the probability of its word",
            f"{holds}: raised for {up['raised']['k']} of {up['raised']['n']}, "
            f"more than by every random neuron for {up['beats_rise']['k']} (by chance "
            f"{chance * up['raised']['n']:.0f})",
        ),
        Row(
            PAPER,
            'with "dog" clamped it always discusses dogs when asked for its favourite animal',
            f"{clamped['k']} of {clamped['n']} answers about the animal ({animals} neurons), "
            f"but only {fluent['k']} of them fluent; plain {plain['k']} of {plain['n']}, random neurons "
            f"{random['k']} of {random['n']}",
        ),
    ]
