"""What a search over a model's parts looks for: a level for each part, within a budget.

A part, such as a sublayer or a matrix, is at level 0 as it is, and at each higher level smaller or coarser and cheaper.
`SearchSpace` says what there is and puts it in place; `greedy` and `uniform` are what `evopress` has to beat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from workbench.core.progress import Progress
from workbench.surgery.child import SurgeryError
from workbench.surgery.registry import Cancelled
from workbench.surgery.search.fitness import DenseKL

Candidate = tuple[int, ...]
"""A level for each part."""
WAYS = 12
"""Ways to spread a budget evenly that `uniform` tries."""


class SearchSpace(Protocol):
    """The parts of a model, and what each of them can be."""

    parts: Sequence[str]
    """Their names."""
    costs: Sequence[Sequence[float]]
    """Of each part at each of its levels, falling, in any unit."""
    module: Any
    """The plain modules that run with what `set` puts in place."""

    def set(self, levels: Candidate) -> None:
        """Put these levels in place."""
        ...


@runtime_checkable
class DifferentiableSpace(SearchSpace, Protocol):
    """Levels 0 and 1 of parts in order, whose effect a gradient tells: a share of a part can be left out, 1 is all."""

    def slopes(self, fitness: DenseKL, levels: Candidate, windows: Sequence[int]) -> tuple[float, Tensor]:
        """The mean KL on these windows, and how it rises with the share of each part that is left out, `[parts]`."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    parts: tuple[str, ...]
    """Names of the parts."""
    levels: Candidate
    """Of each part."""
    cost: float
    """Of all parts together."""
    kl: float
    """KL(dense ‖ found) in nats on the tokens that it was chosen on."""
    token_forwards: int
    """Positions that were run through candidates; on a way back they count once more."""
    evaluations: int
    """Candidates that were run."""

    @property
    def chosen(self) -> dict[str, int]:
        """The parts that are not as they were, with their levels."""
        return {part: level for part, level in zip(self.parts, self.levels, strict=True) if level}

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"parts": list(self.parts), "levels": list(self.levels)}


class CandidateEvaluator:
    """Runs candidates, and counts.

    Args:
        space: what candidates are of.
        fitness: what judges them.
        budget: the cost that they may have.
        passes: positions that may be run through candidates.
        progress, cancel: as for every operation, asked after each round or candidate.

    Raises:
        SurgeryError: a budget that can't be reached, or above what the model costs as it is.
        Cancelled: somebody said to stop.
    """

    def __init__(
        self,
        space: SearchSpace,
        fitness: DenseKL,
        budget: float,
        *,
        passes: int,
        progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ):
        self.space, self.fitness, self.budget, self.passes = space, fitness, budget, passes
        self.progress, self.cancel = progress, cancel
        self.evaluations, self._before = 0, fitness.token_forwards
        self._known: dict[tuple[Candidate, int], tuple[float, int]] = {}
        most, least = (sum(part[place] for part in space.costs) for place in (0, -1))
        if not least <= budget <= most:
            raise SurgeryError(
                f"The budget must lie between {least:g} and {most:g}, what these parts can cost; not {budget:g}."
            )
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise SurgeryError(f"passes, the positions to run candidates on, is a whole number from 1, not {passes!r}.")

    @property
    def used(self) -> int:
        """Positions run so far; on a way back they count once more."""
        return self.fitness.token_forwards - self._before

    def cost(self, levels: Sequence[int]) -> float:
        """Of a candidate."""
        return sum(part[level] for part, level in zip(self.space.costs, levels, strict=True))

    def fits(self, levels: Sequence[int]) -> bool:
        """Whether a candidate is within the budget, but for rounding."""
        return self.cost(levels) <= self.budget * (1 + 1e-9)

    def kl(self, levels: Candidate, windows: Sequence[int]) -> float:
        """Of a candidate, on some windows; it is run on each of them once, however often it is asked for."""
        fresh = [window for window in windows if (levels, window) not in self._known]
        if fresh:
            self.space.set(levels)
            self.evaluations += 1
        for window in fresh:
            self._known[levels, window] = self.fitness.on(self.space.module, window)
        found = [self._known[levels, window] for window in windows]
        return sum(total for total, _ in found) / sum(count for _, count in found)

    def slopes(self, levels: Candidate, window: int) -> tuple[float, Tensor]:
        """KL of a candidate on a window, and its slopes there: see `DifferentiableSpace`."""
        assert isinstance(self.space, DifferentiableSpace)
        self.evaluations += 1
        return self.space.slopes(self.fitness, levels, [window])

    def stops(self) -> bool:
        """Whether the passes are used up; tells how far it is."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("The search was stopped; nothing has changed.")
        if self.progress:
            self.progress(min(self.used / self.passes, 1.0), f"{self.used:,} of {self.passes:,} positions")
        return self.used >= self.passes

    def found(self, levels: Candidate, kl: float) -> SearchResult:
        """The result."""
        self.space.set(levels)
        return SearchResult(tuple(self.space.parts), levels, self.cost(levels), kl, self.used, self.evaluations)


def raised(levels: Candidate, part: int, by: int = 1) -> Candidate:
    """The same with one part at a higher level."""
    return (*levels[:part], levels[part] + by, *levels[part + 1 :])


def greedy(
    space: SearchSpace,
    fitness: DenseKL,
    budget: float,
    *,
    passes: int,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """Raise one part's level at a time, the one that adds least KL per cost saved, until the budget is met.

    Each evaluation runs on as many windows as `passes` allow, the same for all.

    Raises:
        SurgeryError: as `CandidateEvaluator`, or passes that are not enough for one window for each evaluation,
            even if every step saved as much as the best can.
    """
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    levels: Candidate = (0,) * len(space.costs)
    top = [len(part) - 1 for part in space.costs]
    if evaluator.fits(levels):
        return evaluator.found(levels, 0.0)
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
                found = evaluator.kl(one, windows)
                trials.append(((found - kl) / (evaluator.cost(levels) - evaluator.cost(one)), found, one))
        _, kl, levels = min(trials)
    evaluator.stops()
    return evaluator.found(levels, kl)


def _rounds(evaluator: CandidateEvaluator, top: Sequence[int], saved: float) -> int:
    """How many evaluations a greedy search takes, if each step saves so much."""
    whole, parts = evaluator.cost([0] * len(top)), len(top)
    needed = math.ceil((whole - evaluator.budget) / saved - 1e-6) if saved else 0
    depth = max(top)
    return max(1, int(sum(parts - (step / depth if depth > 1 else step) for step in range(needed))))


def ranked(
    space: SearchSpace,
    fitness: DenseKL,
    budget: float,
    *,
    passes: int,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SearchResult:
    """Raise each part alone by one level, once; then raise the least harmful ones until the budget is met.

    Raises:
        SurgeryError: as `CandidateEvaluator`.
    """
    evaluator = CandidateEvaluator(space, fitness, budget, passes=passes, progress=progress, cancel=cancel)
    windows = range(max(1, min(len(fitness), int(passes / (len(space.costs) * fitness.window_tokens)))))
    levels = least_harmful(evaluator, harms(evaluator, windows))
    return evaluator.found(levels, evaluator.kl(levels, windows))


def harms(evaluator: CandidateEvaluator, windows: Sequence[int]) -> list[float]:
    """KL of each part raised alone, by one level."""
    dense: Candidate = (0,) * len(evaluator.space.costs)
    found = []
    for part in range(len(dense)):
        evaluator.stops()
        found.append(evaluator.kl(raised(dense, part), windows))
    return found


def least_harmful(evaluator: CandidateEvaluator, harm: Sequence[float]) -> Candidate:
    """A candidate of the parts that are least harmful alone, per cost saved."""
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
    fitness: DenseKL,
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
    return evaluator.found(levels, kl)
