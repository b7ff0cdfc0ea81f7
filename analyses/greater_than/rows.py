"""README's row on the greater-than task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.greater_than.task import PUBLISHED
from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: P-difference with transcoders in place of MLPs, and without these MLPs."""
    by_layer = {one["name"].removeprefix("transcoder-"): one["transcoder"] for one in summary["mlps"]}
    first, *_, last = by_layer
    return [
        Row(
            "Dunefsky et al. (arXiv 2406.11944)",
            f"P-difference of GPT-2 small {PUBLISHED['model']:.3f}, with a transcoder in place of MLP 10 "
            f"{PUBLISHED['transcoder 10']:.3f}",
            "not the same measure, since digits are tokens here: on the digit of the decade "
            f"{summary['model']['p_difference']:.2f} as it is, {by_layer[first]['p_difference']:.2f} with the "
            f"transcoder in place of MLP {first}, {summary['all']['p_difference']:.2f} with all {len(by_layer)} in "
            f"place of MLPs {first} to {last}, {summary['none']['p_difference']:.2f} without these MLPs",
        )
    ]
