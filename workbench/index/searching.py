"""Search in an index by text, token, label and density."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workbench.index.annotations import Annotations
from workbench.index.layout import FeatureIndexError
from workbench.index.tokens import TokenTable
from workbench.index.words import search_words

_TOKEN_COLUMNS = {"peaks": "activating", "promoted": "promoted"}


class Searcher:
    """Conditions of a search; the result of each is a mask `[n_features]`, or features with the fields that match.

    Args:
        words: the search file.
        annotations: labels and notes.
        tokens: the token table.
        statistics: columns of the index; `density`, `peaks` and `promoted` are used.
    """

    def __init__(self, words: Path, annotations: Annotations, tokens: TokenTable, statistics: dict[str, np.ndarray]):
        self._words, self._annotations, self._tokens, self._statistics = words, annotations, tokens, statistics

    def among(self, features: Iterable[int]) -> np.ndarray:
        """A mask of these features."""
        mask = np.zeros(len(self._statistics["density"]), bool)
        mask[list(features)] = True
        return mask

    def dense(self, bounds: tuple[float, float]) -> np.ndarray:
        """A mask of the features with a density within the bounds, both included."""
        low, high = bounds
        density = self._statistics["density"]
        return (density >= low) & (density <= high)

    def labelled(self, text: str) -> np.ndarray:
        """A mask of the features with these words in their label."""
        return self.among(feature for feature, where in self._annotations.search(text) if where == "label")

    def with_token(self, token: str | int) -> np.ndarray:
        """A mask of the features that are most active on a token or promote it."""
        pieces = self._tokens.pieces
        ids = [token] if isinstance(token, int) else [one for one, text in pieces.items() if text == token]
        return np.logical_or.reduce([np.isin(self._statistics[name], ids).any(1) for name in _TOKEN_COLUMNS])

    def with_text(self, text: str) -> dict[int, str]:
        """Features with the words, best first, each with the field: label, note, activating or promoted."""
        if not text.strip():
            raise FeatureIndexError("There is nothing to search for; type a word.")
        matches = dict(self._annotations.search(text))
        for feature, where in search_words(self._words, text):
            matches.setdefault(feature, where)
        if not any(letter.isalnum() for letter in text):  # punctuation is no word, but can be a token
            alike = [one for one, piece in self._tokens.pieces.items() if piece.strip() == text.strip()]
            for name, where in _TOKEN_COLUMNS.items():
                for feature in np.flatnonzero(np.isin(self._statistics[name], alike).any(1)).tolist():
                    matches.setdefault(feature, where)
        return matches
