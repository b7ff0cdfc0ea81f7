"""The rule that fits a feature best, chosen on half of the texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from workbench.index.rules.detection import Active, area
from workbench.index.rules.rule import JOIN, Condition, Rule, joined
from workbench.index.rules.surroundings import SLOT, SLOTS, Places, Slot, Surroundings

SIZES = (1, 3, 6, 12, 24)
"""Numbers of values of a condition that are tried; of words that are near, the first three."""
SINGLE = 8
"""Conditions of which pairs are tried."""
PRICE, SLACK = 0.06, 0.005
"""Share of what lacks to an area of 1 that each unit of a rule's length must take away, so that a short rule stands
before a long one; and what may lack anyway."""
SAMPLE = 20_000
"""Tokens of the half on which the shares of all tokens are counted."""
LEAST = 2
"""Active tokens that a value stands on at least."""


@dataclass(frozen=True)
class Candidate:
    """A rule and its area on the half that it was chosen on."""

    rule: Rule
    area: float

    @property
    def worth(self) -> float:
        """How little lacks to an area of 1, on a logarithmic scale, less the price of the rule's length."""
        return -math.log(1 + SLACK - self.area) - PRICE * self.rule.length


class Chooser:
    """Chooses rules on one half of the texts.

    Args:
        around: slots and classes of the tokens.
        half: whether each row is of that half, `[n_tokens]`.
        seed: of the tokens that are drawn for the shares of all, where the half has more than `SAMPLE`.
    """

    def __init__(self, around: Surroundings, half: np.ndarray, seed: int):
        self.around = around
        rows = np.flatnonzero(half)
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))
        self.sample = around.at(rows)
        self.shares = {name: self._share(name) for name in (*SLOTS, "next token")}
        self._flag_shares = self.sample.flags.mean(0)

    def best(self, active: Active, promoted: np.ndarray) -> Candidate | None:
        """The best rule for a feature, or None where nothing is above chance.

        Args:
            active: its tokens in the half.
            promoted: codes of the tokens that it promotes, in the slot `token`.
        """
        here = self.around.at(active.rows)
        singles = sorted(self._singles(active, here, promoted), key=lambda one: -one.worth)
        singles = [one for one in singles if one.area > 0.5]
        if not singles:
            return None
        return max([*singles, *self._pairs(_varied(singles), active, here)], key=lambda one: one.worth)

    def _singles(self, active: Active, here: Places, promoted: np.ndarray) -> Iterator[Candidate]:
        """Conditions alone. A slot has one value at a time, so that shares of several values are sums."""
        for name in SLOTS:
            codes, shares, held = self._strongest(name, active, here)
            texts = self._values(name).texts
            for size in SIZES:
                if not len(codes) or (size > 1 and len(codes) <= size // 2):
                    break
                rule = Rule((Condition(name, tuple(texts[code] for code in codes[:size].tolist())),))
                if name == "near" and size > 1:
                    yield self._scored(rule, rule.mask(self.sample), rule.mask(here), active)
                else:
                    yield _summed(rule, shares[:size], held[:size], active)
        held = active.weights @ here.flags
        for place in np.argsort(self._flag_shares - held)[:3].tolist():
            rule = Rule((Condition("class", (self.around.flag_names[place],)),))
            yield _summed(rule, self._flag_shares[[place]], held[[place]], active)
        if len(promoted):
            texts = self.around.slots["token"].texts
            rule = Rule((Condition("next token", tuple(texts[code] for code in promoted.tolist())),))
            yield _summed(rule, self.shares["next token"][promoted], active.weights[rule.mask(here)], active)

    def _strongest(self, name: SLOT, active: Active, here: Places) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values of a slot by the gain of hits over all tokens, best first, with their shares of all and of hits."""
        codes, of = _each(here.codes[name])
        values, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
        held = np.bincount(place, active.weights[of], minlength=len(values))
        shares = self.shares[name][values]
        order = np.argsort(shares - held, kind="stable")
        order = order[(held[order] > shares[order]) & (counts[order] >= LEAST)]
        order = order[: SIZES[2] if name == "near" else SIZES[-1]]
        return values[order], shares[order], held[order]

    def _values(self, name: str) -> Slot:
        return self.around.slots[{"near": "word", "next token": "token"}.get(name, name)]

    def _scored(self, rule: Rule, sample: np.ndarray, here: np.ndarray, active: Active) -> Candidate:
        """A rule by whether it holds on each token of the sample, and on each active one."""
        return Candidate(rule, area(float(sample.mean()), float(active.weights[here].sum()), active.density))

    def _pairs(self, singles: list[Candidate], active: Active, here: Places) -> Iterator[Candidate]:
        joins: tuple[JOIN, ...] = ("and", "or")
        masks = {one.rule: (one.rule.mask(self.sample), one.rule.mask(here)) for one in singles}
        for one, two in combinations(singles, 2):
            for join in joins:
                rule = Rule((*one.rule.conditions, *two.rule.conditions), join)
                sample, active_ones = zip(masks[one.rule], masks[two.rule], strict=True)
                yield self._scored(rule, joined(sample, join), joined(active_ones, join), active)

    def _share(self, name: str) -> np.ndarray:
        """The share of the sample's tokens on which each value of a slot stands."""
        codes, _ = _each(self.sample.codes[name])
        return np.bincount(codes, minlength=len(self._values(name).texts)) / max(len(self.sample.flags), 1)


def _summed(rule: Rule, shares: np.ndarray, held: np.ndarray, active: Active) -> Candidate:
    return Candidate(rule, area(float(shares.sum()), float(held.sum()), active.density))


def _each(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a slot on each row `[n]` or `[n, values]`, and the row of each."""
    found = np.sort(codes.reshape(len(codes), -1), axis=1)
    fresh = found >= 0
    fresh[:, 1:] &= found[:, 1:] != found[:, :-1]
    return found[fresh], np.nonzero(fresh)[0]


def _varied(singles: list[Candidate]) -> list[Candidate]:
    """The best conditions for pairs: two of a slot at most."""
    counts: dict[str, int] = {}
    chosen = []
    for one in singles:
        slot = one.rule.conditions[0].slot
        counts[slot] = counts.get(slot, 0) + 1
        if counts[slot] <= 2:
            chosen.append(one)
    return chosen[:SINGLE]
