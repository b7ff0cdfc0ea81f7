"""README's rows on TokFSM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.shared.study import Row
from analyses.tokfsm.plan import PUBLISHED

PAPER = "Tamkin et al. (arXiv 2310.17230)"


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Three rows: accuracy, precision of state codes, forcing."""
    models = summary["models"]
    plain, attention, both = PUBLISHED["plain"], PUBLISHED["attention"], PUBLISHED["both"]
    accuracies = [models[name]["language"] for name in PUBLISHED]
    codes = {name: models[name]["state_codes"] for name in ("attention", "both")}
    forcing = [models[name]["steering"] for name in ("attention", "both")]
    return [
        Row(
            PAPER,
            "accuracy of the next token / next state of a language whose truth is known: no codebook "
            f"{plain[1]:g} / {plain[2]:g}, on attention {attention[1]:g} / {attention[2]:g}, on attention and MLPs "
            f"{both[1]:g} / {both[2]:g}",
            ", ".join(f"{100 * one['accuracy']:.2f} / {100 * one['transition']:.1f}" for one in accuracies)
            + "; the codebooks start from the trained model",
        ),
        Row(
            PAPER,
            "state codes have a precision of 97.1%, the best neuron at equal recall 70.5%",
            f"{codes['attention']['precision']:.1%} and {codes['attention']['neuron_precision']:.1%} on attention, "
            f"{codes['both']['precision']:.1%} and {codes['both']['neuron_precision']:.1%} on attention and MLPs",
        ),
        Row(
            PAPER,
            "forcing a state's codes makes the model go on from there",
            " and ".join(f"{one['forced']['target']:.0%}" for one in forcing)
            + " of the next state's probability are on its edges, "
            + " and ".join(f"{one['random']['target']:.0%}" for one in forcing)
            + f" with random codes (chance {forcing[0]['chance']:.0%})",
        ),
    ]
