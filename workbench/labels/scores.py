"""Scores of a label: how well it tells the texts and tokens on which a feature is active.

Detection, fuzzing and intruder follow Paulo et al., "Automatically interpreting millions of features in large language
models" (2024, arXiv 2410.13928); simulation follows Bills et al. (2023): the correlation of what the label predicts for
each token with the feature's value. Whoever judges is a rule, which is computed, or a language model that is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Shown
from workbench.core.hashing import hash_of
from workbench.index import FeatureIndex
from workbench.index.rules.detection import Z
from workbench.index.rules.explaining import STRONG, halves
from workbench.index.rules.rule import Rule
from workbench.index.rules.surroundings import Surroundings
from workbench.labels.asking import Notebook
from workbench.labels.errors import LabelError
from workbench.labels.prompts import CLOSE, OPEN, as_numbers, for_detection, one_line

INTRUDERS = 5
"""Texts of which one is no example."""


@dataclass(frozen=True)
class Score(Shown):
    """A score with its 95% interval."""

    value: float
    low: float
    high: float
    chance: float
    """What knowing nothing gives."""
    n: int
    """Texts or tokens that were judged."""


@dataclass(frozen=True)
class LabelScores(Shown):
    """The scores of one label on the half of the texts that labels are not made from; None where it can't be told."""

    detection: Score | None
    """Balanced accuracy over texts with and without an active token."""
    fuzzing: Score | None
    """Balanced accuracy over marked tokens, of which half are the active ones of their texts."""
    intruder: Score | None
    """Share of the rounds in which the text without an active token was found among five."""
    simulation: Score | None
    """Correlation of the prediction with the feature's values over the tokens of the texts; of rules alone."""


@runtime_checkable
class Judge(Protocol):
    """Who says whether a label holds."""

    def texts(self, windows: Sequence[range]) -> list[bool] | None:
        """Whether the label holds somewhere in each window of rows; None where there is no answer."""
        ...

    def tokens(self, windows: Sequence[range], rows: Sequence[int]) -> list[bool] | None:
        """Whether the label holds on the row in each window; None where there is no answer."""
        ...


@checked(LabelError)
class RuleJudge:
    """A rule, which is computed on the tokens.

    Args:
        index: the index.
        rule: the JSON of a label's rule.

    Raises:
        FeatureIndexError: the text is no rule.
    """

    def __init__(self, index: FeatureIndex, rule: str):
        self.rule = rule
        self.mask = Rule.from_json(rule).mask(Surroundings(index.tokens))

    def texts(self, windows: Sequence[range]) -> list[bool]:
        """Whether the rule holds somewhere in each window."""
        return [bool(self.mask[one.start : one.stop].any()) for one in windows]

    def tokens(self, windows: Sequence[range], rows: Sequence[int]) -> list[bool]:
        """Whether the rule holds on each row."""
        return self.mask[np.asarray(rows, np.int64)].tolist()


@checked(LabelError)
class AskedJudge:
    """A language model that is asked about a label in words.

    Args:
        index: the index.
        notebook: who answers.
        label: the label.
    """

    def __init__(self, index: FeatureIndex, notebook: Notebook, label: str):
        self.index, self.notebook, self.label = index, notebook, label

    def texts(self, windows: Sequence[range]) -> list[bool] | None:
        """Whether the model names each window's number."""
        return self._asked([text_of(self.index, one) for one in windows])

    def tokens(self, windows: Sequence[range], rows: Sequence[int]) -> list[bool] | None:
        """Whether the model names each window's number, in which the row stands between marks."""
        return self._asked([text_of(self.index, one, row) for one, row in zip(windows, rows, strict=True)])

    def _asked(self, texts: list[str]) -> list[bool] | None:
        """Texts are numbered in an order that is drawn, so that their place says nothing of what is right."""
        drawn = np.random.default_rng(int(hash_of([self.label, texts])[:12], 16)).permutation(len(texts))
        answer = self.notebook.ask(for_detection(self.label, [texts[place] for place in drawn]))
        numbers = None if answer is None else as_numbers(answer, len(texts))
        return None if numbers is None else [number + 1 in numbers for number in np.argsort(drawn).tolist()]


def text_of(index: FeatureIndex, window: range, row: int = -1) -> str:
    """The text of a window on one line, with one row between marks."""
    strings = index.tokens.strings_in_text(np.arange(window.start, window.stop))
    rows = zip(window, strings, strict=True)
    return one_line("".join(f"{OPEN}{text}{CLOSE}" if one == row else text for one, text in rows))


@dataclass(frozen=True)
class Contexts:
    """Windows of rows around tokens of the half that labels are not made from."""

    active: list[range]
    peaks: list[int]
    """The strongly active row in each."""
    other: list[range]
    """Windows in which the feature is not active, as far as the index knows it."""


def contexts_of(index: FeatureIndex, feature: int, n: int, seed: int) -> Contexts:
    """Drawn contexts of a feature, at most `n` of each sort."""
    chance = np.random.default_rng([seed, feature])
    chosen = halves(index.tokens, seed).chosen
    rows, values = (np.asarray(one) for one in index.entries.of(feature))
    above = values > 0
    strong = rows[above & (values >= STRONG * (values[0] if len(values) else 1))]
    peaks = chance.permutation(strong[~chosen[strong]])[:n]
    used = np.zeros(index.n_tokens + 1, np.int64)
    used[1:][rows[above]] = 1
    counts = np.cumsum(used)
    drawn = chance.permutation(np.flatnonzero(~chosen))[: 50 * n]
    begins, ends = index.tokens.windows(drawn)
    free = counts[ends] == counts[begins]
    return Contexts(_ranges(*index.tokens.windows(peaks)), peaks.tolist(), _ranges(begins[free][:n], ends[free][:n]))


def _ranges(begins: np.ndarray, ends: np.ndarray) -> list[range]:
    return [range(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


@checked(LabelError)
def score_label(
    index: FeatureIndex, feature: Natural, judge: Judge, *, n: Positive = 20, seed: Natural = 0
) -> LabelScores:
    """The scores of a label of a feature.

    Args:
        index: of a corpus.
        feature: the feature.
        judge: a `RuleJudge` or an `AskedJudge` of the label.
        n: texts of each sort at most; a model is asked about all of them in one prompt for each score.
        seed: of the halves, as in `FeatureIndex.explain`, and of what is drawn.

    Raises:
        LabelError: an index from an export, or one without the feature.
    """
    if index.exported or feature >= index.n_features:
        raise LabelError(f"Labels are scored on the corpus of an index that has the feature; there is no {feature:,}.")
    drawn = contexts_of(index, feature, n, seed)
    if not drawn.active or not drawn.other:
        return LabelScores(None, None, None, None)
    said, count = judge.texts([*drawn.active, *drawn.other]), len(drawn.active)
    return LabelScores(
        None if said is None else balanced(said[:count], said[count:]),
        _fuzzing(index, feature, judge, drawn, seed),
        None if said is None else _intruder(said[:count], said[count:], seed),
        _simulation(index, feature, judge, drawn) if isinstance(judge, RuleJudge) else None,
    )


@checked(LabelError)
def detect(index: FeatureIndex, feature: Natural, judge: Judge, *, n: Positive = 20, seed: Natural = 0) -> Score | None:
    """The detection score of a label alone, as in `score_label`; None where it can't be told."""
    drawn = contexts_of(index, feature, n, seed)
    said = judge.texts([*drawn.active, *drawn.other]) if drawn.active and drawn.other else None
    return None if said is None else balanced(said[: len(drawn.active)], said[len(drawn.active) :])


def _fuzzing(index: FeatureIndex, feature: int, judge: Judge, drawn: Contexts, seed: int) -> Score | None:
    """Half of the marks stand on the active tokens of their texts, half on others of the same texts."""
    chance = np.random.default_rng([seed, feature, 1])
    windows, rows = [], []
    for window in drawn.active:
        idle = [
            row for row, value in zip(window, index.entries.at(feature, np.array(window)), strict=True) if not value
        ]
        if idle:
            windows.append(window)
            rows.append(int(chance.choice(idle)))
    if not windows:
        return None
    said = judge.tokens([*drawn.active, *windows], [*drawn.peaks, *rows])
    return None if said is None else balanced(said[: len(drawn.active)], said[len(drawn.active) :])


def _intruder(active: Sequence[bool], other: Sequence[bool], seed: int) -> Score | None:
    """Rounds of four texts with an active token and one without; among equal ones the choice is drawn."""
    if len(active) < INTRUDERS - 1:
        return None
    chance = np.random.default_rng([seed, 2])
    won = 0.0
    for intruder in other:
        held = [active[place] for place in chance.choice(len(active), INTRUDERS - 1, replace=False)]
        least = min([*held, intruder])
        won += (intruder == least) / [*held, intruder].count(least)
    low, high = wilson(won / len(other), len(other))
    return Score(won / len(other), low, high, 1 / INTRUDERS, len(other))


def _simulation(index: FeatureIndex, feature: int, judge: RuleJudge, drawn: Contexts) -> Score | None:
    rows = np.unique(np.concatenate([np.array(one) for one in [*drawn.active, *drawn.other]]))
    values, held = index.entries.at(feature, rows), judge.mask[rows].astype(float)
    if values.std() == 0 or held.std() == 0:
        return Score(0.0, 0.0, 0.0, 0.0, len(rows))
    r = float(np.corrcoef(values, held)[0, 1])
    texts = len(drawn.active) + len(drawn.other)
    width = Z / math.sqrt(max(texts - 3, 1))  # Fisher's, as if each text told one thing
    middle = math.atanh(min(max(r, -0.999999), 0.999999))
    return Score(r, math.tanh(middle - width), math.tanh(middle + width), 0.0, len(rows))


def balanced(active: Sequence[bool], other: Sequence[bool]) -> Score:
    """Balanced accuracy of what was said of active ones and of others, with Newcombe's interval (1998)."""
    hit, alarm = sum(active) / len(active), sum(other) / len(other)
    (hit_low, hit_high), (alarm_low, alarm_high) = wilson(hit, len(active)), wilson(alarm, len(other))
    value = (1 + hit - alarm) / 2
    low = value - math.hypot(hit - hit_low, alarm_high - alarm) / 2
    high = value + math.hypot(hit_high - hit, alarm - alarm_low) / 2
    return Score(value, max(low, 0.0), min(high, 1.0), 0.5, len(active) + len(other))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval (1927) of a share of `n`."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)
