"""Scores of features as classifiers of the tokens that a regular expression marks.

The regex search of Tamkin, Taufeeque and Goodman (2023, arXiv 2310.17230): precision is hits divided by the feature's
activations, recall is hits divided by matches.
"""

from __future__ import annotations

import numpy as np

from workbench.index.card import RegexScore
from workbench.index.entries import Entries


class RegexScores:
    """Scores of every feature for some marked tokens.

    Where only some entries of a feature are kept, hits are estimated: those among the highest entries count once, those
    among the evenly spaced ones count for their neighbours too. A signed feature (a neuron) is hardly ever 0; it counts
    as active from the threshold with the best F1 among its highest kept entries.

    Args:
        entries: of the index.
        marked: rows of the marked tokens, each once, `[matches]`.

    Attributes:
        hits, precision, recall, f1, threshold: `[n_features]`.
    """

    def __init__(self, entries: Entries, marked: np.ndarray):
        self._entries = entries
        self.matches = len(marked)
        mask = np.zeros(entries.n_tokens, bool)
        mask[marked] = True
        places = np.flatnonzero(mask[entries.rows])  # among the entries
        features = np.searchsorted(entries.offsets, places, "right") - 1
        ranks = places - entries.offsets[features]  # place among the feature's kept entries
        n = len(entries.counts)
        self.threshold = np.zeros(n, np.float32)
        if entries.signed:
            active, self.hits = self._best_heads(features, ranks)
        else:
            active = entries.counts
            self.hits = np.bincount(features, self._weights(features, ranks), minlength=n)
            self.hits = np.minimum(self.hits, np.minimum(active, self.matches))  # an estimate can't be more
        self.precision = self.hits / np.maximum(active, 1)
        self.recall = self.hits / max(self.matches, 1)
        self.f1 = 2 * self.hits / np.maximum(active + self.matches, 1)

    def of(self, feature: int) -> RegexScore:
        """The scores of one feature."""
        return RegexScore(
            float(self.hits[feature]),
            float(self.precision[feature]),
            float(self.recall[feature]),
            float(self.f1[feature]),
            self.matches,
            self._entries.signed or self._entries.kept(feature).complete,
            float(self.threshold[feature]),
        )

    def _weights(self, features: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        keep, counts = self._entries.keep, self._entries.counts
        if keep is None:
            return np.ones(len(features))
        head = -(-keep // 2)
        spaced = (counts[features] > keep) & (ranks >= head)
        return np.where(spaced, (counts[features] - head) / (keep - head), 1.0)

    def _best_heads(self, features: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each feature the number of highest entries with the best F1, and the hits among them."""
        n = len(self._entries.counts)
        heads = np.array([self._entries.kept(feature).head for feature in range(n)])
        inside = ranks < heads[features]
        features, ranks = features[inside], ranks[inside]
        first = np.searchsorted(features, np.arange(n + 1))
        hits = np.arange(len(features)) - first[features] + 1  # up to and with each hit; the best cut is at a hit
        f1 = 2 * hits / (ranks + 1 + self.matches)
        active, best_hits = np.zeros(n, np.int64), np.zeros(n)
        order = np.lexsort((f1, features))
        last = first[1:][np.diff(first) > 0] - 1  # the best of each feature that has any
        best = order[last]
        of = features[best]
        active[of], best_hits[of] = ranks[best] + 1, hits[best]
        self.threshold[of] = self._entries.values[self._entries.offsets[of] + ranks[best]]
        return active, best_hits
