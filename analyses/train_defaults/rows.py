"""README's row on the dictionaries that ship."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.shared.published import span
from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row without a paper: fidelity of the SAE and of the transcoders."""
    sae, *transcoders = summary["dictionaries"].values()
    fidelity, l0 = (
        span((one["loss_recovered"] for one in transcoders), ".3f"),
        span((one["l0"] for one in transcoders), ".0f"),
    )
    linear = span(one["linear_path_alone"]["loss_recovered"] for one in transcoders).replace("-", "−")
    return [
        Row(
            "",
            "",
            f"the dictionaries that ship: the SAE recovers {sae['loss_recovered']:.3f} of the loss at L0 "
            f"{sae['l0']:.0f}, {len(transcoders)} transcoders {fidelity} "
            f"at L0 {l0}, their linear paths alone {linear}",
        )
    ]
