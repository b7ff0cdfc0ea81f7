"""README's row on transcoders beside SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.shared.study import Row

PUBLISHED_TOKENS = 60_000_000


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: the loss recovered by each kind, at each number of active latents."""
    plan, pairs = summary["provenance"]["plan"], summary["comparisons"]
    first, *others = (
        (
            f"at L0 {one['l0']['transcoder']:.0f} ",
            *(f"{one['loss_recovered'][kind]:.2f}" for kind in ("transcoder", "SAE")),
        )
        for one in pairs
    )
    figures = [f"{first[0]}it recovers {first[1]} of the loss and the SAE {first[2]}"]
    figures += [f"{where.replace('L0 ', '')}{transcoder} and {sae}" for where, transcoder, sae in others]
    behind = sum(one["better"] == "SAE" for one in pairs)
    verdict = "not" if behind == len(pairs) else f"in {len(pairs) - behind} of {len(pairs)} pairs"
    untrained = "; both are far from trained" if plan["tokens"] < PUBLISHED_TOKENS / 10 else ""
    return [
        Row(
            "Dunefsky et al. (arXiv 2406.11944)",
            "at equal L0 a transcoder is at least on par with an SAE on the MLP's output "
            f"({PUBLISHED_TOKENS / 1e6:.0f}M tokens, ×32)",
            f"{verdict} after {plan['tokens']:,} tokens in layer {plan['layer']}, width {plan['width']:,}: "
            f"{', '.join(figures)}{untrained}",
        )
    ]
