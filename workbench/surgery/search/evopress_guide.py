"""Rounds of `evopress` where parts have slopes: a surrogate rates candidates from all runs.

Each run is a forward and a backward pass on one window, which counts as two and gives a slope for each part. The
fitness is the expectation of a surrogate that learns from all runs. The parent is the best candidate by it; offspring
are the ends of exchanges of parts from the parent, under a draw of the surrogate's posterior. The KL on one window does
not tell which of two good candidates is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.surgery.search.budgets import Candidate, CandidateEvaluator
from workbench.surgery.search.evopress_surrogate import Surrogate

IDLE = 5
"""Rounds without a new pair of candidate and window, after which the search ends."""


def guided(
    evaluator: CandidateEvaluator,
    harm: Sequence[float],
    begin: Sequence[Candidate],
    *,
    offspring: int,
    until: int,
    chance: torch.Generator,
) -> list[Candidate]:
    """Search by rounds of one parent and λ offspring.

    Args:
        evaluator: of a `DifferentiableSpace`.
        harm: KL of each part left out alone.
        begin: candidates to run first.
        offspring: λ.
        until: positions run by the evaluator, at which the search ends.
        chance: source of all draws.

    Returns:
        Candidates, the best by the surrogate first.

    Raises:
        SurgeryError: a KL that is no number.
    """
    surrogate, deck, idle = Surrogate(harm), _Deck(len(evaluator.fitness), chance), 0

    def run(candidates: Sequence[Candidate]) -> bool:
        """Run each candidate on a window; True if any run was new."""
        fresh = False
        for candidate in candidates:
            window = deck.draw(candidate)
            if window is not None and not evaluator.stops() and evaluator.used < until:
                surrogate.saw(candidate, window, *evaluator.slopes(candidate, window))
                fresh = True
        return fresh

    run(begin)
    while True:
        surrogate.learn()
        seen = surrogate.seen
        ranked = [seen[one] for one in surrogate.values(seen).argsort().tolist()]
        if evaluator.used >= until or idle >= IDLE:
            return list(dict.fromkeys([exchanged(evaluator, ranked[0], *surrogate.expected()), *ranked]))
        drawn = [exchanged(evaluator, ranked[0], *surrogate.drawn(chance)) for _ in range(offspring)]
        idle = 0 if run(drawn) else idle + 1


class _Deck:
    """Windows in turn, shuffled anew after each full turn; none twice for a candidate."""

    def __init__(self, windows: int, chance: torch.Generator):
        self._windows, self._chance = windows, chance
        self._left: list[int] = []
        self._had: dict[Candidate, set[int]] = {}

    def draw(self, candidate: Candidate) -> int | None:
        """The next window for a candidate; None after all windows."""
        had = self._had.setdefault(candidate, set())
        if len(had) == self._windows:
            return None
        if not set(self._left) - had:
            self._left += torch.randperm(self._windows, generator=self._chance).tolist()
        window = next(one for one in self._left if one not in had)
        self._left.remove(window)
        had.add(window)
        return window


def exchanged(evaluator: CandidateEvaluator, levels: Candidate, alone: Tensor, pairs: Tensor) -> Candidate:
    """The candidate after exchanges of one part for another, each the best, until none lowers the KL in the budget.

    Args:
        evaluator: holds costs and budget.
        levels: a candidate within it.
        alone: the KL that each part adds, `[parts]`.
        pairs: the KL that two parts add beyond that, symmetric, `[parts, parts]`.
    """
    saved = torch.tensor([*(costs[0] - costs[1] for costs in evaluator.space.costs), 0.0], dtype=torch.float64)
    alone = torch.cat([alone, alone.new_zeros(1)])  # the last is no part: it takes one's place where there is room
    pairs = torch.nn.functional.pad(pairs, (0, 1, 0, 1))
    x = torch.tensor([*levels, 0], dtype=torch.float64)
    while True:
        room = evaluator.budget * (1 + 1e-9) - evaluator.cost([int(one) for one in x[:-1]])
        worth = alone + pairs @ x
        change = worth - worth[:, None] - pairs  # [back, out]
        may = (x[:, None] > 0) & (x == 0) & (saved[:, None] - saved <= room)
        change = change.masked_fill(~may, 0.0)
        least = int(change.argmin())
        if not change.flatten()[least] < -1e-9 * worth.abs().max():  # less is rounding, and could go round for ever
            return tuple(int(one) for one in x[:-1])
        back, out = divmod(least, len(x))
        x[back] = 0.0
        x[out] = float(out < len(x) - 1)
