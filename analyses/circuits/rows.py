"""README's row on circuits."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from analyses.shared.published import listed
from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: AUC against patching, and on models whose circuit is set by hand."""
    tasks, plan = summary["tasks"], summary["provenance"]["plan"]
    phrases = {"indirect object": "indirect objects", "docstring": "docstrings"}
    published = [f"{one['published']['discrete SAE']:g} for {phrases.get(name, name)}" for name, one in tasks.items()]

    def aucs(method: str, pairs: int) -> str:
        rows = [row for one in tasks.values() for row in one["judged"]["nodes"]]
        return listed([row["auc"] for row in rows if (row["method"], row["pairs"]) == (method, pairs)], ".2f")

    cases: dict[tuple[str, int], list[float]] = {}
    for row in summary["by hand"]:
        cases.setdefault((row["kind"], row["busy"]), []).append(row["discrete"]["auc"])
    alone = min(fmean(values) for (_, busy), values in cases.items() if not busy)
    busy = min(fmean(values) for (_, busy), values in cases.items() if busy)
    return [
        Row(
            "O'Neill and Bui (arXiv 2405.12522)",
            "codes that occur only on positive prompts find the heads of a circuit: node ROC AUC "
            f"{', '.join(published)}, on smaller models whose circuits are published",
            f"against patching every head: {aucs('discrete', plan['paper'])} by the paper's protocol, attribution "
            f"patching {aucs('attribution', 10)} with 10 pairs; on models whose circuit is set by hand {alone:.2f}, "
            f"falling to {busy:.2f} where other heads do other work",
        )
    ]
