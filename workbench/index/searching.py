"""Search in an index by text, token, label and density."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from workbench.index.annotations import Remark
from workbench.index.layout import FeatureIndexError
from workbench.index.tokens import TokenTable
from workbench.index.words import ABSENT, BEGINNING, WHOLE, folded, match, match_all, words_of

LONGEST = 1000
"""Characters of a search."""
_TOKEN_COLUMNS = {"peaks": "activating", "promoted": "promoted"}


class Match(NamedTuple):
    """Where a feature holds the words of a search."""

    field: str
    """label, note, activating or promoted; empty for nowhere."""
    token: int | None = None
    """The id of the token with the word, in a list of tokens; of several words, the one furthest behind."""


NO_MATCH = Match("")


class Searcher:
    """Conditions of a search; the result of each is a mask `[n_features]`, or features with the fields that match.

    Args:
        tokens: the token table.
        statistics: columns of the index; `density`, `peaks` and `promoted` are used.
    """

    def __init__(self, tokens: TokenTable, statistics: Mapping[str, np.ndarray]):
        self._tokens, self._statistics = tokens, statistics

    def among(self, features: Iterable[int]) -> np.ndarray:
        """A mask of these features."""
        mask = np.zeros(len(self._statistics["density"]), bool)
        mask[list(features)] = True
        return mask

    def dense(self, bounds: tuple[float, float]) -> np.ndarray:
        """A mask of the features with a density within the bounds, both included; of an export, of those it holds.

        A density that an export does not say is within bounds that leave out nothing.
        """
        low, high = bounds
        density, held = self._statistics["density"], self._statistics.get("held")
        fits = (density >= low) & (density <= high)
        if held is None:
            return fits
        return (held > 0) & (fits | (np.isnan(density) & (low <= 0) & (high >= 1)))

    def labelled(self, text: str, remarks: Mapping[int, Remark]) -> np.ndarray:
        """A mask of the features with these words in their label."""
        words = _words(text)
        return self.among(one for one, remark in remarks.items() if match_all(words, remark.label))

    def with_token(self, token: str | int) -> np.ndarray:
        """A mask of the features that are most active on a token or promote it."""
        if token == "":
            raise FeatureIndexError("There is nothing to search for; type a token.")
        pieces = self._tokens.pieces
        ids = [token] if isinstance(token, int) else [one for one, text in pieces.items() if text == token]
        return np.logical_or.reduce([np.isin(self._statistics[name], ids).any(1) for name in _TOKEN_COLUMNS])

    def with_text(self, text: str, remarks: Mapping[int, Remark]) -> dict[int, Match]:
        """Features with all words of a text in one field, best first, and where they stand.

        Labels rank before notes, these before tokens that a feature is active on, these before tokens that it promotes.
        Whole words rank before beginnings of words: within labels and within notes, and in all tokens. Among tokens the
        place of the word in the feature's list decides, then how often it stands there, then the lower density.
        """
        words = _words(text)
        matches: dict[int, Match] = {}
        for field in ("label", "note"):
            found = [(one, match_all(words, getattr(remark, field))) for one, remark in remarks.items()]
            for one, _ in sorted((pair for pair in found if pair[1]), key=lambda pair: -pair[1]):
                matches.setdefault(one, Match(field))
        grades = [self._grades(word) for word in words]
        for least in (WHOLE, BEGINNING):
            for name, field in _TOKEN_COLUMNS.items():
                wanted = [grade >= least for grade in grades]
                ids = self._statistics[name]
                for feature, place in _ranked(ids, wanted, self._statistics["density"]):
                    matches.setdefault(feature, Match(field, int(ids[feature, place])))
        return matches

    def _grades(self, word: str) -> np.ndarray:
        """How each token holds a word, by its id; the last place, for -1, is of no token."""
        ids, texts = self._folded
        grades = np.full(max(ids, default=0) + 2, ABSENT, np.int8)
        for token, text in zip(ids, texts, strict=True):
            if word in text:
                grades[token] = match(word, text)
        return grades

    @cached_property
    def _folded(self) -> tuple[list[int], list[str]]:
        """The ids of all tokens, and their texts, folded."""
        pieces = self._tokens.pieces
        return list(pieces), [folded(text) for text in pieces.values()]


def _words(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise FeatureIndexError(f"A search has at most {LONGEST:,} characters, not {len(text):,}.")
    words = list(dict.fromkeys(words_of(text)))
    if not words:
        raise FeatureIndexError("There is nothing to search for; type a word.")
    return words


def _ranked(ids: np.ndarray, wanted: list[np.ndarray], density: np.ndarray) -> list[tuple[int, int]]:
    """The features with a token of each set in their row, best first, and the place in the row.

    The place of the first such token decides; among equal ones the number of such tokens, then the lower density.

    Args:
        ids: tokens of each feature, best first, `[n_features, n]`; -1 for none.
        wanted: sets of tokens, as masks over ids, with False for -1.
        density: of each feature, `[n_features]`.
    """
    found = [mask[ids] for mask in wanted]  # [n_features, n] each
    features = np.flatnonzero(np.logical_and.reduce([one.any(1) for one in found]))
    count = sum((one[features].sum(1) for one in found), np.zeros(len(features), int))
    first = np.max([one[features].argmax(1) for one in found], axis=0)
    order = np.lexsort((density[features], -count, first))
    return list(zip(features[order].tolist(), first[order].tolist(), strict=True))
