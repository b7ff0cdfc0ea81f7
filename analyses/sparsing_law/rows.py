"""README's row on the sparsing law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.shared.published import span
from analyses.shared.study import Row


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row: the verdicts on the paper's findings, with the ends of the trainings."""
    runs = [run for run in summary["runs"].values() if run["activation"] in ("relu", "silu")]
    ends = {kind: span(run["points"][-1]["active"] for run in runs if run["activation"] == kind) for kind in _KINDS}
    reproduced = {one["finding"]: one["verdict"] == "reproduced" for one in summary["findings"]}
    largest, smallest = (pick(runs, key=lambda run: run["weights"]) for pick in (max, min))
    sparser = largest["points"][-1]["active"] < smallest["points"][-1]["active"]
    size = "larger models are sparser" if sparser else "larger models are less sparse"
    here = [
        f"SiLU rises by a power law, as in the paper, to {ends['silu']}"
        if reproduced["data, SiLU"]
        else f"SiLU, at {ends['silu']}, does not always rise",
        f"ReLU, at {ends['relu']}, {'falls' if reproduced['data, ReLU'] else 'does not fall'}",
        f"with width over depth {'it rises' if reproduced['width and depth'] else 'nothing rises'}",
        "size hardly matters" if reproduced["size"] else size,
    ]
    return [
        Row(
            "Luo et al. (arXiv 2411.02335)",
            "with more data the share of active neurons falls for ReLU and rises for SiLU by laws of its own; it rises "
            "with width over depth; it hardly depends on size (0.1 to 2.4 billion weights)",
            f"{len(runs)} trainings of {span((run['weights'] / 1e6 for run in runs), '.1f')} million weights, up to "
            f"{max(summary['provenance']['plan']['points']) / 1e6:.1f} million tokens: {'; '.join(here)}",
        )
    ]


_KINDS = ("relu", "silu")
