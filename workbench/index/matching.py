"""Features of two dictionaries matched: by the cosine of their directions and by that of their activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.core.checks import checked
from workbench.core.display import Tabular
from workbench.dictionaries.protocol import Dictionary
from workbench.index.feature_index import FeatureIndex
from workbench.index.layout import FeatureIndexError
from workbench.index.lists import Lists
from workbench.index.promoted_tokens import directions

CHUNK = 256
MATCHED = 0.7
"""The least likeness of features that count as the same."""


@dataclass(frozen=True, eq=False, repr=False)
class Matches(Tabular):
    """For each feature of one dictionary the most similar one of another."""

    other: np.ndarray = field(repr=False)
    """`[n_features]`; by the mean of the two cosines."""
    direction: np.ndarray = field(repr=False)
    """The cosine of the two directions, `[n_features]`."""
    activation: np.ndarray = field(repr=False)
    """The cosine of the two activations over the tokens that both indexes keep, `[n_features]`; 0 for dead ones."""
    live: np.ndarray = field(repr=False)
    """Whether each feature is active somewhere, `[n_features]`."""

    def __len__(self) -> int:
        return len(self.other)

    @property
    def likeness(self) -> np.ndarray:
        """The mean of the two cosines, `[n_features]`."""
        return (np.maximum(self.direction, 0) + self.activation) / 2

    @property
    def lacking(self) -> list[int]:
        """Live features without a match of at least 0.7, which the other dictionary lacks."""
        return np.flatnonzero(self.live & (self.likeness < MATCHED)).tolist()

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each feature."""
        for index, other in enumerate(self.other.tolist()):
            numbers = {"direction": float(self.direction[index]), "activation": float(self.activation[index])}
            yield {"index": index, "other": other, **numbers, "likeness": float(self.likeness[index])}

    def _facts(self) -> Mapping[str, object]:
        return {"features": len(self), "live": int(self.live.sum()), "the other lacks": len(self.lacking)}


@checked(FeatureIndexError)
def match_features(index: FeatureIndex, other: FeatureIndex) -> Matches:
    """The feature of another dictionary that is most similar to each feature of one.

    Args:
        index: opened with its dictionary.
        other: an index of the same tokens, opened with its dictionary, which writes vectors of the same width.

    Raises:
        FeatureIndexError: an index without its dictionary, or two of different tokens or widths.
    """
    one, two = index.dictionary, other.dictionary
    if one is None or two is None:
        raise FeatureIndexError("To match features, open both indexes with open_index(path, model, dictionary).")
    same = index.n_tokens == other.n_tokens and np.array_equal(index.tokens.ids, other.tokens.ids)
    if not same or not np.array_equal(index.tokens.runs, other.tokens.runs):
        raise FeatureIndexError("The two indexes are of different tokens; build both on one corpus, in one call.")
    mine, theirs = _unit(one), _unit(two)
    if mine.shape[1] != theirs.shape[1]:
        raise FeatureIndexError(
            f"{one.name} and {two.name} write vectors of different widths, which can't be compared."
        )
    lists = [_active(one_index) for one_index in (index, other)]
    best, direction, activation = (np.zeros(len(mine)) for _ in range(3))
    for start in range(0, len(mine), CHUNK):
        here = slice(start, min(start + CHUNK, len(mine)))
        cosines, alike = mine[here] @ theirs.T, lists[0].cosines(lists[1], here)
        chosen = (np.maximum(cosines, 0) + alike).argmax(1)
        rows = np.arange(len(chosen))
        best[here], direction[here], activation[here] = chosen, cosines[rows, chosen], alike[rows, chosen]
    return Matches(best.astype(np.int64), direction, activation, np.diff(index.entries.offsets) > 0)


def _unit(dictionary: Dictionary) -> np.ndarray:
    rows = directions(dictionary).cpu().numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _active(index: FeatureIndex) -> Lists:
    features = np.repeat(np.arange(index.n_features), np.diff(index.entries.offsets))
    return Lists(features, index.entries.rows, index.entries.values, index.n_features)
