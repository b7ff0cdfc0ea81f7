"""How well a rule tells the tokens on which a feature is active from others: a balanced area under the ROC curve.

A rule says yes or no, so that its curve has one corner and the area is (1 + hits - false alarms) / 2, where hits is the
share of the active tokens on which it holds and false alarms that of the others. The share of all tokens on which it
holds is counted, and says the false alarms where an index keeps only some of a feature's tokens:
share of all = density * hits + (1 - density) * false alarms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z = 1.959964
"""Of a 95% interval."""


@dataclass(frozen=True)
class Active:
    """Some tokens on which a feature is active, in one half of the texts."""

    rows: np.ndarray
    """`[n]`."""
    weights: np.ndarray
    """Share of the half's active tokens that each stands for, `[n]`; they sum to 1."""
    texts: int
    """Number of texts with one of them."""
    density: float
    """Share of the half's tokens on which the feature is active."""


def hits(mask: np.ndarray, active: Active) -> float:
    """The share of the active tokens on which a mask `[n_tokens]` holds."""
    return float(active.weights[mask[active.rows]].sum())


def false_alarms(share: float, hit: float, density: float) -> float:
    """The share of the inactive tokens on which a rule holds that holds on a share of all tokens."""
    return min(1.0, max(0.0, (share - density * hit) / max(1 - density, 1e-9)))


def area(share: float, hit: float, density: float) -> float:
    """The area under the curve of a rule; 0.5 is chance."""
    return (1 + hit - false_alarms(share, hit, density)) / 2


def interval(value: float, hit: float, texts: int) -> tuple[float, float]:
    """Ends of the 95% interval of an area.

    Wilson's interval (1927) of the hits, as if each text told one thing: tokens of one text are not independent. The
    share of all tokens on which a rule holds is counted on so many that its error is left out.
    """
    n = max(texts, 1)
    middle = (hit + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(hit * (1 - hit) / n + Z**2 / (4 * n**2))
    low, high = value + (middle - half - hit) / 2, value + (middle + half - hit) / 2
    return max(0.0, min(low, value)), min(1.0, max(high, value))
