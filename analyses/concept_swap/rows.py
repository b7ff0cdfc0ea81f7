"""The row on swapped concepts of the table of published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: how often a swap has its way, beside random directions."""
    best = summary["chosen"]
    return [
        Row(
            "Gurnee et al. 2026 (transformer-circuits.pub/2026/workspace)",
            "exchanging two concepts' coordinates along Jacobian-lens vectors makes large models answer for the other",
            f"behind layer {best['layer']} with amount {best['amount']:g}, chosen on every other pair, the wanted "
            f"answer passes the prompt's own in {share(best['jacobian']['way'])} of {best['pairs']} other pairs and is "
            f"the likeliest token in {share(best['jacobian']['wins'])}; by vectors of the logit lens "
            f"{share(best['logit']['way'])}, by random directions of the same lengths {share(best['random']['way'])}",
        )
    ]


def share(value: Sequence[float]) -> str:
    """A share with its interval."""
    return f"{value[0]:.0%} ({value[1]:.0%} to {value[2]:.0%})"
