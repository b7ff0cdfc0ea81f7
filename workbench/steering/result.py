"""What a search of directions found: its trials, and the front of effect against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.core.checks import Number, checked
from workbench.core.display import Rows, Shown, Tabular, record_of
from workbench.directions.direction import Direction
from workbench.interventions import AblateDirection, InterventionKind, Steer
from workbench.steering.errors import SteeringError

if TYPE_CHECKING:
    from workbench.figures.common import Figure

Act = Literal["add", "ablate"]
"""What is done with a direction: it is added at its hook point, or no layer writes along it any more."""


@dataclass(frozen=True)
class DirectionTrial(Shown):
    """One way to use a direction, with what it does and what it costs."""

    number: int
    hook_point: str
    """Where the direction was found, and is added."""
    method: str
    position: str
    act: Act
    strength: float
    """The share of the direction's natural strength that is added; 0 where it is ablated."""
    amount: float
    """What is added along the direction of length 1."""
    effect: float
    """The mean over texts."""
    effect_interval: tuple[float, float]
    """95%, by a bootstrap over texts."""
    cost: float
    """The mean over texts."""


@dataclass(frozen=True, eq=False)
class DirectionSearch(Tabular):
    """The trials of a search."""

    trials: list[DirectionTrial]
    """In the order in which they were made; without those that the model could not run under."""
    plain_effect: float
    """The effect's measure on the plain model."""
    plain_cost: float
    complete: bool
    """Whether every trial that was asked for was made; False where it was stopped."""
    found: Mapping[tuple[str, str], Mapping[str, Direction]] = field(repr=False)
    """Directions by hook point, by method and position."""

    @property
    def front(self) -> Rows[DirectionTrial]:
        """The trials of which no other has at least the effect for at most the cost, by rising cost."""
        kept: list[DirectionTrial] = []
        for one in sorted(self.trials, key=lambda one: (one.cost, -one.effect, one.number)):
            if not kept or one.effect > kept[-1].effect:
                kept.append(one)
        return Rows(kept)

    @checked(SteeringError)
    def best(self, most: Number) -> DirectionTrial:
        """The trial with the highest effect among those of a cost of at most `most`.

        It was chosen on the texts of the search: measure it on others before you believe its effect.

        Raises:
            SteeringError: no trial costs so little.
        """
        cheap = [one for one in self.front if one.cost <= most]
        if not cheap:
            least = min((one.cost for one in self.trials), default=float("nan"))
            raise SteeringError(f"No trial costs at most {most:g}; the cheapest costs {least:.3g}.")
        return cheap[-1]

    @checked(SteeringError)
    def direction(self, trial: DirectionTrial) -> Direction:
        """The direction of a trial; raises `SteeringError` for a trial of another search."""
        own = self.found.get((trial.method, trial.position), {})
        if trial not in self.trials or trial.hook_point not in own:
            raise SteeringError("This trial belongs to another search; take one of .trials or .front.")
        return own[trial.hook_point]

    @checked(SteeringError)
    def edits(self, trial: DirectionTrial) -> list[InterventionKind]:
        """The interventions of a trial, for `model.generate`, `wb.bake` or saving; errors as `direction`."""
        return edits_of(self.direction(trial), trial.act, trial.amount)

    def figure(self) -> Figure:
        """Effect against cost, with the front."""
        from workbench.figures.steering import search_front

        return search_front(self.trials, self.front, self.plain_effect)

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each trial."""
        return (record_of(one) for one in self.trials)


def edits_of(direction: Direction, act: Act, amount: float) -> list[InterventionKind]:
    """The interventions that add an amount of a direction, or ablate it."""
    if act == "add":
        return [Steer.along(direction, amount)]
    ((_, vector),) = direction.vectors.items()
    return [AblateDirection(vector.tolist())]  # type: ignore[arg-type]


def means(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
