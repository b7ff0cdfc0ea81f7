"""Rounds of `evopress` where parts have slopes: what is known of a candidate comes from all that were run.

Each run is on one window, there and back, which counts as two and shows a slope for each part. Fitness is what a
surrogate expects that learns from all runs: the parent is the best so far by it, and offspring are where exchanges of
parts lead from the parent by a draw of what the surrogate holds possible. A KL on one window would not say which of two
good candidates is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.surgery.search.budgets import Candidate, CandidateEvaluator
from workbench.surgery.search.evopress_surrogate import Surrogate

IDLE = 5
"""Rounds without a candidate and window that were not run already, after which there is nothing left to see."""


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
        evaluator: runs candidates, of parts with slopes.
        harm: KL of each part left out alone.
        begin: candidates to run first.
        offspring: λ.
        until: positions that the evaluator may have run when it ends.
        chance: of everything that is drawn.

    Returns:
        Candidates, the best by the surrogate first.

    Raises:
        SurgeryError: a KL that is no number.
    """
    surrogate, deck, idle = Surrogate(harm), _Deck(len(evaluator.fitness), chance), 0

    def run(candidates: Sequence[Candidate]) -> bool:
        """Each on a window; whether anything was new."""
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
    """Windows in turn, shuffled anew when all had theirs; none twice for a candidate."""

    def __init__(self, windows: int, chance: torch.Generator):
        self._windows, self._chance = windows, chance
        self._left: list[int] = []
        self._had: dict[Candidate, set[int]] = {}

    def draw(self, candidate: Candidate) -> int | None:
        """The next window for a candidate; None where it had all."""
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
    """Where exchanges of one part for another lead, the best each time, until none within the budget lowers the KL.

    Args:
        evaluator: knows the budget.
        levels: a candidate within it.
        alone: what each part adds to the KL, `[parts]`.
        pairs: what two parts add beside, symmetric, `[parts, parts]`.
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
