"""The rows on swapped concepts and on lenses of the table of published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.shared.study import Row

SHOWN = (6, 12, 18, 24, 28)
"""Layers of which KL divergences are named."""


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """How often a swap has its way, beside random directions; and how well lenses predict the final layer."""
    best = summary["chosen"]
    by_kind = {one["kind"]: one for one in summary["kl"]}
    layers = [layer for layer in SHOWN if layer in by_kind["jacobian"]["layers"]]
    lenses = [f"{kind} {divergences(one, 'kl', layers)}" for kind, one in by_kind.items()]
    lenses.append(f"logit {divergences(by_kind['jacobian'], 'logit_kl', layers)}")
    return [
        Row(
            "Gurnee et al. 2026 (transformer-circuits.pub/2026/workspace)",
            "exchanging two concepts' coordinates along Jacobian-lens vectors makes large models answer for the other",
            f"behind layer {best['layer']} with amount {best['amount']:g}, chosen on every other pair, the wanted "
            f"answer passes the prompt's own in {share(best['jacobian']['way'])} of {best['pairs']} other pairs and is "
            f"the likeliest token in {share(best['jacobian']['wins'])}; by vectors of the logit lens "
            f"{share(best['logit']['way'])}, by random directions of the same lengths {share(best['random']['way'])}",
        ),
        Row(
            "Belrose et al. 2023 (arXiv 2303.08112)",
            "a fitted lens predicts the final layer's token better than the logit lens, at every layer",
            f"KL to the final layer on {by_kind['jacobian']['tokens']:,} tokens that no lens was fitted on, in nats, "
            f"behind layers {', '.join(map(str, layers))}: {'; '.join(lenses)}",
        ),
    ]


def divergences(lens: Mapping[str, Any], name: str, layers: Sequence[int]) -> str:
    """KL divergences of a lens behind layers."""
    return ", ".join(f"{lens[name][lens['layers'].index(layer)]:.2f}" for layer in layers)


def share(value: Sequence[float]) -> str:
    """A share with its interval."""
    return f"{value[0]:.0%} ({value[1]:.0%} to {value[2]:.0%})"
