"""EvoPress: an evolutionary search for the best level of each part of a model within a budget.

Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress" (2024), arXiv 2410.14649: (1 + λ) with mutations that move
budget from one part to another, the KL to the dense model's predictions as fitness, and a selection in several steps,
each with fewer candidates on more tokens; the parent is judged only in the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.surgery.budgets import (
    Candidate,
    Found,
    Judge,
    Levels,
    even,
    greedy,
    least_harmful,
    raised,
    ranked,
    uniform,
)
from workbench.surgery.child import SurgeryError
from workbench.surgery.fitness import DenseKL
from workbench.weights import Progress

IDLE = 20
"""Rounds without a candidate that was not known already, after which there is nothing left to find."""


def evopress(
    choice: Levels,
    fitness: DenseKL,
    budget: float,
    *,
    passes: int,
    offspring: int = 8,
    selection: Sequence[tuple[int, int]] = ((2, 2), (1, 8)),
    first: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Found:
    """Search for the candidate with the least KL within a budget.

    Args:
        choice: the parts and their levels.
        fitness: judges candidates, on as many of its windows as a step of the selection says, drawn anew each time.
        budget: what all parts together may cost.
        passes: positions that may be run through candidates; the search ends with the round in which they are used up,
            or when mutants are no longer new.
        offspring: λ, mutants of the parent in a round.
        selection: (how many are kept, windows that they are judged on) of each step; the last one keeps 1.
        first: candidates to begin from, evenly spread and random ones in turns. Beside them there is one of the parts
            that are least harmful alone, judged on one window, if a tenth of `passes` is enough to find that out.
        seed: of everything.
        progress, cancel: as for every operation, asked after each round.

    Raises:
        SurgeryError: as `Judge`, or a selection that does not end with 1 candidate.
        Cancelled: somebody said to stop.
    """
    if isinstance(first, bool) or first < 1 or offspring < 1:
        raise SurgeryError(f"first and offspring are whole numbers from 1, not {first!r} and {offspring!r}.")
    if not selection or selection[-1][0] != 1 or any(kept < 1 or windows < 1 for kept, windows in selection):
        raise SurgeryError("selection is a list of (kept, windows), each from 1, and its last step keeps 1.")
    judge = Judge(choice, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    chance = torch.Generator().manual_seed(seed)
    pool = [_random(judge, chance) if number % 2 else even(choice, budget, number / first) for number in range(first)]
    if len(choice.costs) * fitness.window_tokens <= passes / 10:
        pool.append(least_harmful(judge, range(1)))
    parent, kl = _select(judge, list(dict.fromkeys(pool)), selection, None, chance)
    idle = 0
    while not judge.stops() and idle < IDLE:
        children = {_mutated(judge, parent, chance) for _ in range(offspring)} - {parent}
        if not children:
            break
        used = judge.used
        parent, kl = _select(judge, sorted(children), selection, parent, chance)
        idle = idle + 1 if judge.used == used else 0
    return judge.found(parent, kl)


def _select(
    judge: Judge,
    candidates: Sequence[Candidate],
    selection: Sequence[tuple[int, int]],
    parent: Candidate | None,
    chance: torch.Generator,
) -> tuple[Candidate, float]:
    """The best candidate, found in several steps, or the parent if it is better in the last; and its KL there."""
    scored = [(0.0, one) for one in candidates]
    for step, (kept, windows) in enumerate(selection):
        last = step == len(selection) - 1
        some = torch.randperm(len(judge.fitness), generator=chance)[:windows].tolist()
        judged = [one for _, one in scored] + ([parent] if last and parent is not None else [])
        scored = sorted((judge.kl(one, some), one) for one in judged)[:kept]
    return scored[0][1], scored[0][0]


def _pick(places: Sequence[int], chance: torch.Generator) -> int:
    return places[int(torch.randint(len(places), (1,), generator=chance))]


def _mutated(judge: Judge, parent: Candidate, chance: torch.Generator) -> Candidate:
    """One to three moves of budget: a part gets a lower level, and others higher ones until the budget is met again."""
    moves = int(torch.randint(1, 4, (2,), generator=chance).min())
    levels = parent
    for _ in range(moves):
        high = [part for part, level in enumerate(levels) if level > 0]
        if not high:
            break
        relieved = _pick(high, chance)
        levels = _within(judge, raised(levels, relieved, -1), relieved, chance)
    return levels


def _within(judge: Judge, levels: Candidate, spared: int, chance: torch.Generator) -> Candidate:
    """Parts at random raised until the budget is met, `spared` only when no other is left."""
    while not judge.fits(levels):
        low = [part for part, level in enumerate(levels) if level < len(judge.choice.costs[part]) - 1]
        others = [part for part in low if part != spared]
        levels = raised(levels, _pick(others or low, chance))
    return levels


def _random(judge: Judge, chance: torch.Generator) -> Candidate:
    """A candidate within the budget."""
    return _within(judge, (0,) * len(judge.choice.costs), -1, chance)


METHODS = {"greedy": greedy, "ranked": ranked, "uniform": uniform}
"""What `evopress` has to beat, by name."""


def search(choice: Levels, fitness: DenseKL, budget: float, method: str, *, seed: int = 0, **how: Any) -> Found:
    """Search by the method of this name, "evopress" or one of `METHODS`; other arguments as for these.

    Raises:
        SurgeryError: an unknown method, or what the method raises.
    """
    if method == "evopress":
        return evopress(choice, fitness, budget, seed=seed, **how)
    if method not in METHODS:
        raise SurgeryError(f"The method is one of evopress, {', '.join(METHODS)}, not {method!r}.")
    return METHODS[method](choice, fitness, budget, **how)
