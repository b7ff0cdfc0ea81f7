"""Searches that EvoPress has to beat: greedy, by the harm of each part alone, and uniform over the parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from workbench.core.progress import Progress
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.search.budgets import (
    Candidate,
    CandidateEvaluator,
    Fitness,
    SearchResult,
    SearchSpace,
    raised,
)

WAYS = 12
"""Ways to spread a budget evenly that `uniform` tries."""


def greedy(
    space: SearchSpace,
    fitness: Fitness,
    budget: float,
    *,
    passes: int,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """The result of raising one part's level at a time, that of least KL per saved cost, until the budget is met.

    Each evaluation runs on as many windows as `passes` allow, the same for all.

    Raises:
        SurgeryError: as `CandidateEvaluator`, or passes that are not enough for one window for each evaluation,
            even if every step saved as much as the best can.
    """
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    levels: Candidate = (0,) * len(space.costs)
    top = [len(part) - 1 for part in space.costs]
    if evaluator.fits(levels):
        return evaluator.result(levels, 0.0)
    savings = [more - less for part in space.costs for more, less in itertools.pairwise(part)]
    fewest = _rounds(evaluator, top, max(savings))
    least = fewest * fitness.tokens_of(0)
    if passes < least:
        raise SurgeryError(
            f"A greedy search runs {fewest:,} candidates or more here, on {least:,} positions at least; give it as "
            f"many passes, not {passes:,}, or take another method."
        )
    rounds = _rounds(evaluator, top, sum(savings) / len(savings))
    windows = range(max(1, min(len(fitness), int(passes / (rounds * fitness.window_tokens)))))
    kl = 0.0
    while not evaluator.fits(levels):
        trials = []
        for part, last in enumerate(top):
            if levels[part] < last:
                evaluator.stops()
                one = raised(levels, part)
                far = evaluator.kl(one, windows)
                trials.append(((far - kl) / (evaluator.cost(levels) - evaluator.cost(one)), far, one))
        _, kl, levels = min(trials)
    evaluator.stops()
    return evaluator.result(levels, kl)


def _rounds(evaluator: CandidateEvaluator, top: Sequence[int], saved: float) -> int:
    """The number of evaluations of a greedy search whose steps each save `saved`."""
    whole, parts = evaluator.cost([0] * len(top)), len(top)
    needed = math.ceil((whole - evaluator.budget) / saved - 1e-6) if saved else 0
    depth = max(top)
    return max(1, int(sum(parts - (step / depth if depth > 1 else step) for step in range(needed))))


def ranked(
    space: SearchSpace,
    fitness: Fitness,
    budget: float,
    *,
    passes: int,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """The result of raising the parts that do least harm alone until the budget is met; each is run alone once.

    Raises:
        SurgeryError: as `CandidateEvaluator`.
    """
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    windows = range(max(1, min(len(fitness), int(passes / (len(space.costs) * fitness.window_tokens)))))
    levels = least_harmful(evaluator, harms(evaluator, windows))
    return evaluator.result(levels, evaluator.kl(levels, windows))


def harms(evaluator: CandidateEvaluator, windows: Sequence[int]) -> list[float]:
    """The KL of each part raised alone by one level."""
    dense: Candidate = (0,) * len(evaluator.space.costs)
    kls = []
    for part in range(len(dense)):
        evaluator.stops()
        kls.append(evaluator.kl(raised(dense, part), windows))
    return kls


def least_harmful(evaluator: CandidateEvaluator, harm: Sequence[float]) -> Candidate:
    """The candidate of the parts that do least harm alone per saved cost."""
    parts = evaluator.space.costs
    each = [one / (costs[0] - costs[1]) for one, costs in zip(harm, parts, strict=True)]
    order = sorted(range(len(parts)), key=each.__getitem__)
    levels: Candidate = (0,) * len(parts)
    for level in range(max(map(len, parts)) - 1):
        for part in order:
            if not evaluator.fits(levels) and levels[part] == level and level + 1 < len(parts[part]):
                levels = raised(levels, part)
    return levels


def even(space: SearchSpace, budget: float, offset: float = 0.0) -> Candidate:
    """Levels raised evenly over the parts until the budget is met.

    Args:
        space: the parts, in an order in which neighbours are alike.
        budget: of all together.
        offset: from 0 to 1: which of the parts come first.
    """
    count = len(space.costs)
    for steps in range(count * max(map(len, space.costs))):
        base, rest = divmod(steps, count)
        more = {int((number + offset) * count / rest) for number in range(rest)}
        levels = tuple(min(base + (part in more), len(costs) - 1) for part, costs in enumerate(space.costs))
        if sum(part[level] for part, level in zip(space.costs, levels, strict=True)) <= budget * (1 + 1e-9):
            return levels
    raise SurgeryError(f"A budget of {budget:g} can't be reached by raising all parts.")


def uniform(
    space: SearchSpace,
    fitness: Fitness,
    budget: float,
    *,
    passes: int,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """The best of several ways to spread the budget evenly.

    Raises:
        SurgeryError: as `CandidateEvaluator`.
    """
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    ways = list(dict.fromkeys(even(space, budget, number / WAYS) for number in range(WAYS)))
    windows = range(max(1, min(len(fitness), int(passes / (len(ways) * fitness.window_tokens)))))
    tried = []
    for one in ways:
        evaluator.stops()
        tried.append((evaluator.kl(one, windows), one))
    kl, levels = min(tried)
    return evaluator.result(levels, kl)
