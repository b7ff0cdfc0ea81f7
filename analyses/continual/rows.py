"""README's row on learning kinds of text one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.continual.learners import AS_MIXED, MIXED, ORDERED
from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: accuracies after learning in order, and at the rate that suits mixed kinds."""
    bottleneck, probe = summary["accuracy"]["key-value bottleneck"], summary["accuracy"]["linear probe"]

    plan = summary["provenance"]["plan"]

    def share(mean_and_deviation: list[float]) -> str:
        return "{:.0%} ± {:.0%}".format(*mean_and_deviation)

    return [
        Row(
            "Träuble et al. (arXiv 2207.11240)",
            "learning classes one after another, frozen keys forget far less than a linear probe",
            f"{len(summary['kinds'])} kinds of text on frozen activations, {plan['seeds']} orders: "
            f"{share(bottleneck[ORDERED])} with the key-value bottleneck, {share(probe[ORDERED])} with a linear probe "
            f"at the learning rate that is best for this, {share(probe[AS_MIXED])} at the one that is best when all "
            f"kinds are mixed (then {probe[MIXED][0]:.0%}, the bottleneck {bottleneck[MIXED][0]:.0%})",
        )
    ]
