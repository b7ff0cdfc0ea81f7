"""Labels by rule for every feature of an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from workbench.core.progress import Progress
from workbench.index.entries import Entries
from workbench.index.feature_label import CHANCE, RULE, Explanations, FeatureLabel
from workbench.index.rules.choosing import Candidate, Chooser
from workbench.index.rules.detection import Active, area, hits, interval
from workbench.index.rules.surroundings import Surroundings
from workbench.index.tokens import TokenTable

MOST = 3000
"""Tokens of a feature in each half that are looked at; of more, so many drawn ones."""
FEWEST_TOKENS, FEWEST_TEXTS = 3, 2
"""In each half, of a feature that can be tested."""
STRONG = 0.5
"""Share of a feature's highest value from which on it counts as strongly active."""
EVERY = 64
"""Features between two reports of progress."""


class Halves(NamedTuple):
    """Two halves of the texts: whether each row is in the one that rules are chosen on, and its size in tokens."""

    chosen: np.ndarray
    counts: tuple[int, int]
    """Tokens of the half that rules are chosen on, and of the other."""
    text_of: np.ndarray
    """The number of each row's text; texts of the same tokens have one number."""


def halves(tokens: TokenTable, seed: int) -> Halves:
    """The texts of an index in two halves, drawn by a seed; texts of the same tokens are in the same half."""
    text_of = _different_texts(tokens)
    used = np.unique(text_of)
    drawn = np.random.default_rng(seed).permutation(used)[: (len(used) + 1) // 2]
    chosen = np.isin(text_of, drawn)
    count = int(chosen.sum())
    return Halves(chosen, (count, len(chosen) - count), text_of)


def _different_texts(tokens: TokenTable) -> np.ndarray:
    """The number of each row's text, `[n_tokens]`; of texts of the same tokens the lowest number."""
    text_of, _ = tokens.places(np.arange(len(tokens)))
    order = np.argsort(text_of, kind="stable")
    texts, starts = np.unique(text_of[order], return_index=True)
    first: dict[bytes, int] = {}
    parts = np.split(np.asarray(tokens.ids)[order], starts[1:])
    same = [first.setdefault(part.tobytes(), text) for text, part in zip(texts.tolist(), parts, strict=True)]
    return np.array(same, np.int64)[np.searchsorted(texts, text_of)]


class Explainer:
    """Finds the rule of one feature after another.

    Args:
        tokens: the token table.
        entries: of the features.
        promoted: ids of the tokens that each feature promotes, `[n_features, n]`; -1 for none.
        seed: of the halves.
    """

    def __init__(self, tokens: TokenTable, entries: Entries, promoted: np.ndarray, seed: int):
        self.entries, self.promoted, self.seed = entries, promoted, seed
        self.around = Surroundings(tokens)
        self.halves = halves(tokens, seed)
        self.chooser = Chooser(self.around, self.halves.chosen, seed)
        self._pieces = tokens.pieces

    def of(self, feature: int) -> tuple[str, FeatureLabel | None]:
        """The state of a feature, and its label if it is `labelled`."""
        rows, values, weights = self._active(feature)
        if len(rows) == 0:
            return "dead", None
        strong = int(np.count_nonzero(values >= STRONG * values[0]))
        chosen, other = (self._half(feature, rows[:strong], weights[:strong], half) for half in (True, False))
        if any(len(one.rows) < FEWEST_TOKENS or one.texts < FEWEST_TEXTS for one in (chosen, other)):
            return "rare", None
        best = self.chooser.best(chosen, self._promoted(feature))
        label = None if best is None else self._tested(best, other, self._half(feature, rows, weights, False))
        return ("labelled", label) if label is not None and (label.low or 0) > CHANCE else ("chance", None)

    def _active(self, feature: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows on which a feature is active, highest value first, the values, and the tokens that each stands for."""
        rows, values = self.entries.of(feature)
        kept = self.entries.kept(feature)
        spaced = (np.arange(len(rows)) >= kept.head) & (np.arange(len(rows)) < len(rows) - kept.tail)
        weights = np.where(spaced, kept.weight, 1.0)
        above = int(np.count_nonzero(values > 0))  # values fall
        return np.asarray(rows[:above]), np.asarray(values[:above]), weights[:above]

    def _half(self, feature: int, rows: np.ndarray, weights: np.ndarray, half: bool) -> Active:
        inside = self.halves.chosen[rows] == half
        rows, weights = rows[inside].astype(np.int64), weights[inside]
        density = min(float(weights.sum()) / max(self.halves.counts[0 if half else 1], 1), 1.0)
        texts = len(np.unique(self.halves.text_of[rows]))
        if len(rows) > MOST:
            drawn = np.random.default_rng([self.seed, feature]).choice(len(rows), MOST, replace=False)
            rows, weights = rows[drawn], weights[drawn]
        return Active(rows, weights / max(weights.sum(), 1e-12), texts, density)

    def _promoted(self, feature: int) -> np.ndarray:
        """Codes, in the slot `token`, of the tokens that a feature promotes."""
        ids = [int(one) for one in self.promoted[feature] if one >= 0]
        return self.around.slots["token"].codes_of([text for one in ids if (text := self._pieces.get(one, ""))])

    def _tested(self, best: Candidate, strong: Active, weak: Active) -> FeatureLabel:
        """The label of a rule, scored on the other half: on strongly active tokens, and on all active ones."""
        mask = best.rule.mask(self.around)
        share = np.count_nonzero(mask & ~self.halves.chosen) / max(self.halves.counts[1], 1)
        hit = hits(mask, strong)
        score = area(share, hit, strong.density)
        every = area(share, hits(mask, weak), weak.density)
        low, high = interval(score, hit, strong.texts)
        rule = json.dumps(best.rule.to_json(), ensure_ascii=False)
        return FeatureLabel(str(best.rule), RULE, best.rule.kind, score, low, high, every, rule)


def explain_features(
    tokens: TokenTable,
    entries: Entries,
    statistics: Mapping[str, np.ndarray],
    *,
    seed: int,
    progress: Progress | None,
    stops: Callable[[], bool],
) -> Explanations | None:
    """Labels by rule for every feature; None where `stops` says True before the end."""
    explainer = Explainer(tokens, entries, statistics["promoted"], seed)
    states: list[str] = []
    labels: dict[int, FeatureLabel] = {}
    n = len(statistics["promoted"])
    for feature in range(n):
        if feature % EVERY == 0:
            if stops():
                return None
            if progress:
                progress(feature / n, "Looking for rules")
        state, label = explainer.of(feature)
        states.append(state)
        if label is not None:
            labels[feature] = label
    return Explanations(labels, states, statistics["density"].tolist())
