"""Keys with values for each of many features, such as the tokens on which it is active, compared by cosines."""

from __future__ import annotations

import numpy as np


class Lists:
    """The keys of each feature, and the features of each key.

    Args:
        features: of each entry, `[entries]`.
        keys: of each entry, `[entries]`.
        values: of each entry, `[entries]`.
        n_features: number of features.
    """

    def __init__(self, features: np.ndarray, keys: np.ndarray, values: np.ndarray, n_features: int):
        self.n = n_features
        keys, values = np.asarray(keys, np.int64), np.asarray(values, np.float64)
        self.norms = np.sqrt(np.bincount(features, values**2, minlength=n_features))
        own, inverse = np.argsort(features, kind="stable"), np.argsort(keys, kind="stable")
        self._keys, self._values = keys[own], values[own]
        self._offsets = np.searchsorted(features[own], np.arange(n_features + 1))
        self._of, self._there = features[inverse], values[inverse]
        self._starts = np.searchsorted(keys[inverse], np.arange(keys.max(initial=-1) + 2))

    def cosines(self, other: Lists, here: slice) -> np.ndarray:
        """The cosines of some features with all of `other`, at least 0: `[features, other.n]`."""
        found = np.zeros((here.stop - here.start, other.n))
        for place, feature in enumerate(range(here.start, here.stop)):
            mine = slice(self._offsets[feature], self._offsets[feature + 1])
            keys, values = self._keys[mine], self._values[mine]
            inside = keys < len(other._starts) - 1
            keys, values = keys[inside], values[inside]
            if not len(keys):
                continue
            starts = other._starts[keys]
            lengths = other._starts[keys + 1] - starts
            at = np.arange(lengths.sum()) + np.repeat(starts - lengths.cumsum() + lengths, lengths)
            sums = np.bincount(other._of[at], np.repeat(values, lengths) * other._there[at], minlength=other.n)
            found[place] = sums / np.maximum(other.norms * self.norms[feature], 1e-12)
        return np.maximum(found, 0)
