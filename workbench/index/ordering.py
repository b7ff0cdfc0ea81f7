"""Orders of features without a query: the densest first, or the sharpest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from workbench.index.words import folded

USUAL_DENSITY = 1e-3
"""Of features that are equally sharp, those come first that are active about this often."""


def sharpness(peaks: np.ndarray, pieces: Mapping[int, str]) -> np.ndarray:
    """The share of each feature's highest values that stand on one token, `[n_features]`, from 0 to 1.

    Tokens that differ only by case or by white space around them count as one. Places without a token count as tokens
    of their own, so that a feature with few values is not sharp.

    Args:
        peaks: ids of the tokens with a feature's highest values, `[n_features, n]`; -1 for none.
        pieces: the text of each id.
    """
    groups = {text: number for number, text in enumerate(dict.fromkeys(_form(one) for one in pieces.values()))}
    group = np.full(max([*pieces, int(peaks.max(initial=0))]) + 2, -1, np.int64)
    for token, text in pieces.items():
        group[token] = groups[_form(text)]
    found = np.sort(group[peaks], axis=1)
    longest = np.zeros(len(peaks), np.int64)
    run = np.zeros(len(peaks), np.int64)
    for column in range(found.shape[1]):
        same = column > 0 and found[:, column] == found[:, column - 1]
        run = np.where(found[:, column] < 0, 0, np.where(same, run + 1, 1))
        longest = np.maximum(longest, run)
    return longest / max(1, found.shape[1])


def sharpest_first(statistics: Mapping[str, np.ndarray], pieces: Mapping[int, str]) -> np.ndarray:
    """All features, sharpest first, `[n_features]`; among equally sharp ones, active about as often as is usual."""
    density = np.maximum(statistics["density"], np.finfo(np.float64).tiny)
    distance = np.abs(np.log10(density / USUAL_DENSITY))
    return np.lexsort((distance, -sharpness(statistics["peaks"], pieces)))


def densest_first(statistics: Mapping[str, np.ndarray]) -> np.ndarray:
    """All features, densest first, `[n_features]`."""
    return np.argsort(-statistics["density"], kind="stable")


def _form(text: str) -> str:
    return folded(text).strip()
