"""Partners of a feature: features that are active on the same tokens.

For feature i and others j, p(j | i) is the share of i's tokens on which j is active too, and PMI the logarithm of
p(j | i) / p(j). p(j | i) alone ranks the densest features first, PMI alone the rarest. Partners are ranked by
p(j | i) * PMI, j's contribution to the divergence between the tokens of i and all tokens.
"""

from __future__ import annotations

import numpy as np

from workbench.index.spool import SparseSpool

PARTNERS = 8
SAMPLE = 1024
"""Tokens counted per feature, of evenly spaced ranks; a feature with fewer is counted exactly."""
LEAST = 2
"""The least number of tokens that two partners share."""


class Cofiring:
    """Counts the partners of one feature after another.

    Args:
        spool: the codes in the order of the tokens.
        counts: tokens on which each feature is active, `[n_features]`.
    """

    def __init__(self, spool: SparseSpool, counts: np.ndarray):
        self._features, _, self._starts = spool.by_token()
        self._share = counts / max(len(self._starts) - 1, 1)
        n = len(counts)
        self.columns = {
            "partners": np.full((n, PARTNERS), -1, np.int32),
            "partner_shares": np.zeros((n, PARTNERS), np.float32),
            "partner_pmi": np.zeros((n, PARTNERS), np.float32),
        }

    def add(self, feature: int, rows: np.ndarray) -> None:
        """Count the partners on the tokens of a feature, `[count]`, in the order of its values."""
        if len(rows) > SAMPLE:
            rows = rows[((np.arange(SAMPLE) + 0.5) * (len(rows) / SAMPLE)).astype(np.int64)]
        if len(rows) < LEAST:
            return
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        places = np.arange(lengths.sum()) + np.repeat(starts - lengths.cumsum() + lengths, lengths)
        shared = np.bincount(self._features[places], minlength=len(self._share))
        shared[feature] = 0
        others = np.flatnonzero(shared >= LEAST)
        share = shared[others] / len(rows)
        pmi = np.log(share / self._share[others])
        best = np.argsort(-share * pmi, kind="stable")[:PARTNERS]
        best = best[pmi[best] > 0]
        self.columns["partners"][feature, : len(best)] = others[best]
        self.columns["partner_shares"][feature, : len(best)] = share[best]
        self.columns["partner_pmi"][feature, : len(best)] = pmi[best]
