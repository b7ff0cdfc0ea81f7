"""EvoPress: an evolutionary search for the best level of each part of a model within a budget.

Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress" (2024), arXiv 2410.14649: (1 + λ) with mutations that move
budget from one part to another, the KL to the dense model's predictions as fitness, and a selection in several steps,
each with fewer candidates on more tokens; the parent takes part only in the last one. Three things are not in the
paper. Where the passes allow running each part alone, the search begins from several sets of parts that do little harm
alone, since the least harmful ones are often a bad set together. Where parts have slopes, a surrogate learns from them
which candidates to try and which parent is best (`evopress_guide.py`). At the end the last parents are run once more,
on more and more windows, since a parent that won on a few may have been lucky.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.core.checks import Integer, Positive, checked
from workbench.core.progress import Progress
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.search.baselines import even, greedy, harms, least_harmful, ranked, uniform
from workbench.surgery.search.budgets import (
    Candidate,
    CandidateEvaluator,
    DifferentiableSpace,
    Fitness,
    SearchResult,
    SearchSpace,
    raised,
)
from workbench.surgery.search.evopress_guide import guided

FINALISTS = 16
"""Candidates that are run once more at the end, if the passes allow it."""
FINAL_WINDOWS = 8
"""Windows that they are run on first."""
FINAL = 0.1
"""Share of the passes that is kept for the end."""
FINAL_GUIDED = 0.3
"""The same where parts have slopes: until then each run is on one window only."""
ALONE = 0.2
"""Share of the passes that running each part alone on one window may take."""
STARTS = 24
"""Candidates to begin from where each part was run alone."""
SPREAD = 0.3
"""Scale of the noise that is added to the logarithms of their harms."""
IDLE = 20
"""Rounds without a new candidate, after which the search ends."""


@checked(SurgeryError)
def evopress(
    space: SearchSpace,
    fitness: Fitness,
    budget: float,
    *,
    passes: Positive,
    offspring: Positive = 8,
    selection: Sequence[tuple[Positive, Positive]] = ((2, 2), (1, 8)),
    first: Positive = 8,
    seed: Integer = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """Search for the candidate with the least KL within a budget.

    Where parts have slopes (see `DifferentiableSpace`) and the passes are enough for a round, the surrogate of
    `guided` ranks the candidates, and neither `first` nor `selection` is used.

    Args:
        space: the parts and their levels.
        fitness: the distance of a candidate, on windows that each step of the selection draws anew.
        budget: the largest cost of all parts together.
        passes: positions that may be run through candidates; the search ends with the round in which they are used up,
            or after some rounds in which nothing was new.
        offspring: λ, mutants of the parent in a round.
        selection: (number kept, windows to run on) of each step; the last one keeps 1.
        first: candidates to begin from, evenly spread and random ones in turns. Not used if a fifth of `passes` is
            enough to run each part alone on one window: then the search begins from 24 sets of parts that do little
            harm alone.
        seed: of everything.
        progress, cancel: as for every operation, asked after each round.

    Raises:
        SurgeryError: as `CandidateEvaluator`, or a selection that does not end with 1 candidate.
        Cancelled: `cancel` returned True.
    """
    if not selection or selection[-1][0] != 1:
        raise SurgeryError("selection is a list of (kept, windows), each from 1, and its last step keeps 1.")
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    chance = torch.Generator().manual_seed(seed)
    windows, until = passes / fitness.window_tokens, int((1 - FINAL_GUIDED) * passes)
    if (
        isinstance(space, DifferentiableSpace)
        and len(space.costs) + 2 * (STARTS + offspring) <= (1 - FINAL_GUIDED) * windows
    ):
        harm = harms(evaluator, range(1))
        starts = list(dict.fromkeys(_starts(evaluator, harm, chance)))
        return evaluator.result(
            *_luckless(
                evaluator, guided(evaluator, harm, starts, offspring=offspring, until=until, chance=chance), chance
            )
        )
    if len(space.costs) <= ALONE * windows:
        pool = _starts(evaluator, harms(evaluator, range(1)), chance)
    else:
        pool = [_random(evaluator, chance) if one % 2 else even(space, budget, one / first) for one in range(first)]
    parent = _select(evaluator, list(dict.fromkeys(pool)), selection, None, chance)
    parents, idle = [parent], 0
    while not evaluator.stops() and evaluator.used < (1 - FINAL) * passes and idle < IDLE:
        used = evaluator.used
        children = {_mutated(evaluator, parent, chance) for _ in range(offspring)} - {parent}
        if not children:
            break
        parent = _select(evaluator, sorted(children), selection, parent, chance)
        idle = idle + 1 if evaluator.used == used else 0
        parents = parents if parent == parents[-1] else [*parents, parent]
    return evaluator.result(*_luckless(evaluator, list(dict.fromkeys(parents[::-1])), chance))


def _starts(evaluator: CandidateEvaluator, harm: Sequence[float], chance: torch.Generator) -> list[Candidate]:
    """The set of the least harmful parts, and sets of those least harmful under noise."""
    known = torch.tensor(harm).clamp_min(1e-6).log()
    seeming = [known + SPREAD * _minus_gumbel(len(harm), chance) for _ in range(STARTS - 1)]
    return [least_harmful(evaluator, one.exp().tolist()) for one in (known, *seeming)]


def _minus_gumbel(count: int, chance: torch.Generator) -> Tensor:
    """Random numbers g: part i of `x + s g` is the least with the probability of a softmax of `-x / s`."""
    return torch.rand(count, generator=chance).clamp(1e-9, 1 - 1e-6).log().neg().log()


def _luckless(
    evaluator: CandidateEvaluator, parents: Sequence[Candidate], chance: torch.Generator
) -> tuple[Candidate, float]:
    """The best of the first candidates and its KL; each round halves the candidates and doubles the windows."""
    order = torch.randperm(len(evaluator.fitness), generator=chance).tolist()
    windows, left = min(FINAL_WINDOWS, len(order)), evaluator.passes - evaluator.used
    # all turns together take at most as much as two and a half of the first, if windows are doubled three times
    room = int(left / (2.5 * windows * evaluator.fitness.window_tokens))
    some = list(parents)[: max(1, min(room, FINALISTS))]
    while True:
        scored = sorted((evaluator.kl(one, order[:windows]), one) for one in some)
        some, more = [one for _, one in scored[: -(-len(some) // 2)]], min(windows, len(order) - windows)
        takes = len(some) * more * evaluator.fitness.window_tokens
        if not more or len(scored) == 1 or evaluator.stops() or evaluator.used + takes > evaluator.passes:
            return scored[0][1], scored[0][0]
        windows += more


def _select(
    evaluator: CandidateEvaluator,
    candidates: Sequence[Candidate],
    selection: Sequence[tuple[int, int]],
    parent: Candidate | None,
    chance: torch.Generator,
) -> Candidate:
    """The best candidate after all steps of the selection, or the parent if it is better in the last."""
    scored = [(0.0, one) for one in candidates]
    for step, (kept, windows) in enumerate(selection):
        last = step == len(selection) - 1
        some = torch.randperm(len(evaluator.fitness), generator=chance)[:windows].tolist()
        judged = [one for _, one in scored] + ([parent] if last and parent is not None else [])
        scored = sorted((evaluator.kl(one, some), one) for one in judged)[:kept]
    return scored[0][1]


def _pick(places: Sequence[int], chance: torch.Generator) -> int:
    return places[int(torch.randint(len(places), (1,), generator=chance))]


def _mutated(evaluator: CandidateEvaluator, parent: Candidate, chance: torch.Generator) -> Candidate:
    """The parent after one to three moves: a part gets a lower level, others higher ones until the budget is met."""
    moves = int(torch.randint(1, 4, (2,), generator=chance).min())
    levels = parent
    for _ in range(moves):
        high = [part for part, level in enumerate(levels) if level > 0]
        if not high:
            break
        relieved = _pick(high, chance)
        levels = _within(evaluator, raised(levels, relieved, -1), relieved, chance)
    return levels


def _within(evaluator: CandidateEvaluator, levels: Candidate, spared: int, chance: torch.Generator) -> Candidate:
    """The candidate with random parts raised until the budget is met, `spared` only when no other is left."""
    while not evaluator.fits(levels):
        low = [part for part, level in enumerate(levels) if level < len(evaluator.space.costs[part]) - 1]
        others = [part for part in low if part != spared]
        levels = raised(levels, _pick(others or low, chance))
    return levels


def _random(evaluator: CandidateEvaluator, chance: torch.Generator) -> Candidate:
    """A random candidate within the budget."""
    return _within(evaluator, (0,) * len(evaluator.space.costs), -1, chance)


Method = Literal["evopress", "greedy", "ranked", "uniform"]
"""Methods of `search`."""
BASELINES = {"greedy": greedy, "ranked": ranked, "uniform": uniform}
"""The methods that `evopress` has to beat."""


def search(
    space: SearchSpace, fitness: Fitness, budget: float, method: Method, *, seed: int = 0, **how: Any
) -> SearchResult:
    """Search by a method; other arguments and errors as for its function."""
    if method == "evopress":
        return evopress(space, fitness, budget, seed=seed, **how)
    return BASELINES[method](space, fitness, budget, **how)
