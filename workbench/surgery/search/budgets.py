"""What a search over a model's parts looks for: a level for each part, within a budget.

A part, such as a sublayer or a matrix, is unchanged at level 0, and smaller or coarser and cheaper at each higher
level. `SearchSpace` lists the levels and applies them; `Fitness` measures the changed model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from workbench.core.checks import Number, Positive, checked
from workbench.core.display import Tabular, columns
from workbench.core.progress import Progress
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.registry import Cancelled

Candidate = tuple[int, ...]
"""A level for each part."""


class Fitness(Protocol):
    """A distance to the unchanged model on windows of text, such as `DenseKL`."""

    token_forwards: int
    """Positions run through changed models so far; a backward pass counts them once more."""

    def __len__(self) -> int:
        """The number of windows."""
        ...

    @property
    def window_tokens(self) -> float:
        """Positions of a window, on average."""
        ...

    def tokens_of(self, window: int) -> int:
        """Positions of one window."""
        ...

    def on(self, module: Any, window: int) -> tuple[float, int]:
        """The sum over the predictions of one window, and their number."""
        ...

    def gradient(self, module: Any, window: int, of: Tensor) -> tuple[float, Tensor, int]:
        """That sum, its gradient by a tensor that the module uses, and the number of predictions."""
        ...


class SearchSpace(Protocol):
    """The parts of a model and their levels."""

    parts: Sequence[str]
    """Names of the parts."""
    costs: Sequence[Sequence[float]]
    """Of each part at each of its levels, falling, in any unit."""
    module: Any
    """The plain modules that run with the levels of `set`."""

    def set(self, levels: Candidate) -> None:
        """Apply these levels."""
        ...


@runtime_checkable
class DifferentiableSpace(SearchSpace, Protocol):
    """A space with levels 0 and 1 and with gradients by the share of a part that is left out."""

    def slopes(self, fitness: Fitness, levels: Candidate, windows: Sequence[int]) -> tuple[float, Tensor]:
        """The mean KL on these windows, and its slope by the share of each part that is left out, `[parts]`."""
        ...


@dataclass(frozen=True)
class SearchResult(Tabular):
    """The best candidate of a search."""

    parts: tuple[str, ...]
    """Names of the parts."""
    levels: Candidate
    """Of each part."""
    cost: float
    """Of all parts together."""
    kl: float
    """KL(dense ‖ candidate) in nats on the tokens that it was chosen on."""
    token_forwards: int
    """Positions run through candidates; a backward pass counts them once more."""
    evaluations: int
    """Number of candidates that were run."""

    @property
    def chosen(self) -> dict[str, int]:
        """The changed parts, with their levels."""
        return {part: level for part, level in zip(self.parts, self.levels, strict=True) if level}

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each part."""
        return columns(part=self.parts, level=self.levels)

    def _facts(self) -> Mapping[str, object]:
        return {
            "changed parts": len(self.chosen),
            "parts": len(self.parts),
            "cost": self.cost,
            "kl": self.kl,
            "token_forwards": self.token_forwards,
            "evaluations": self.evaluations,
        }

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self) | {"parts": list(self.parts), "levels": list(self.levels)}


class CandidateEvaluator:
    """Runs candidates and counts the positions that they take.

    Args:
        space: the parts and their levels.
        fitness: the distance to the unchanged model.
        budget: the largest cost of a candidate.
        passes: positions that may be run through candidates.
        progress, cancel: as for every operation, asked after each round or candidate.

    Raises:
        SurgeryError: a budget that can't be reached, or above the cost of the unchanged model.
    """

    @checked(SurgeryError)
    def __init__(
        self,
        space: SearchSpace,
        fitness: Fitness,
        budget: Number,
        *,
        passes: Positive,
        progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ):
        self.space, self.fitness, self.budget, self.passes = space, fitness, budget, passes
        self.progress: Progress | None = progress
        self.cancel = cancel
        self.evaluations, self._before = 0, fitness.token_forwards
        self._known: dict[tuple[Candidate, int], tuple[float, int]] = {}
        most, least = (sum(part[place] for part in space.costs) for place in (0, -1))
        if not least <= budget <= most:
            raise SurgeryError(
                f"The budget must lie between {least:g} and {most:g}, what these parts can cost; not {budget:g}."
            )

    @property
    def used(self) -> int:
        """Positions run so far; a backward pass counts them once more."""
        return self.fitness.token_forwards - self._before

    def cost(self, levels: Sequence[int]) -> float:
        """The cost of a candidate."""
        return sum(part[level] for part, level in zip(self.space.costs, levels, strict=True))

    def fits(self, levels: Sequence[int]) -> bool:
        """Whether a candidate is within the budget, up to rounding."""
        return self.cost(levels) <= self.budget * (1 + 1e-9)

    def kl(self, levels: Candidate, windows: Sequence[int]) -> float:
        """The mean KL of a candidate on some windows; each window is run once, however often it is asked for."""
        fresh = [window for window in windows if (levels, window) not in self._known]
        if fresh:
            self.space.set(levels)
            self.evaluations += 1
        for window in fresh:
            self._known[levels, window] = self.fitness.on(self.space.module, window)
        sums = [self._known[levels, window] for window in windows]
        return sum(total for total, _ in sums) / sum(count for _, count in sums)

    def slopes(self, levels: Candidate, window: int) -> tuple[float, Tensor]:
        """The KL of a candidate on a window, and its slopes there: see `DifferentiableSpace`."""
        assert isinstance(self.space, DifferentiableSpace)
        self.evaluations += 1
        return self.space.slopes(self.fitness, levels, [window])

    def stops(self) -> bool:
        """Report the progress; True when the passes are used up.

        Raises:
            Cancelled: `cancel` returned True.
        """
        if self.cancel is not None and self.cancel():
            raise Cancelled("The search was stopped; nothing has changed.")
        if self.progress:
            self.progress(min(self.used / self.passes, 1.0), f"{self.used:,} of {self.passes:,} positions")
        return self.used >= self.passes

    def result(self, levels: Candidate, kl: float) -> SearchResult:
        """The result of a search that ends with these levels; applies them."""
        self.space.set(levels)
        return SearchResult(tuple(self.space.parts), levels, self.cost(levels), kl, self.used, self.evaluations)


def raised(levels: Candidate, part: int, by: int = 1) -> Candidate:
    """The candidate with one part at a higher level."""
    return (*levels[:part], levels[part] + by, *levels[part + 1 :])
