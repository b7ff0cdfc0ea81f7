"""Steer: a direction is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Add, Affine, AffineChange, NotAffineError
from workbench.interventions.protocol import FeatureIntervention, InterventionKind
from workbench.interventions.vectors import JOIN, Vectors, joined_vectors
from workbench.interventions.when import When
from workbench.model.edits import BoundEdit, Edit, EditError
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan
from workbench.model.positions import as_positions


@dataclass(frozen=True)
class Steer(FeatureIntervention):
    """Add a direction: `x + amount * direction`.

    `Steer(feature, amount)` adds the feature's own direction where its dictionary writes, which for a neuron means
    adding to its value. `Steer.along(hook_point, direction, amount)` adds any direction anywhere, and
    `Steer.along(direction, amount)` all vectors of a direction at its hook points, whose names are then joined by " + "
    and whose vectors stand one after another.
    """

    title: ClassVar[str] = "Steer"
    about: ClassVar[str] = "**Steer** adds to the feature."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("amount", "Add", 20.0, neutral=0.0, reach=40.0, step=0.5, follows_activation=True),
        Argument("hook_point", "Hook point", None, "text"),
        Argument("direction", "Direction", None, "direction"),
    )
    rank: ClassVar[int] = 4

    amount: float
    hook_point: str | None = None
    direction: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.direction is None:
            super().__post_init__()
        else:
            object.__setattr__(self, "positions", as_positions(self.positions))
            InterventionKind.__post_init__(self)

    @classmethod
    def along(
        cls,
        hook_point: str | Vectors,
        direction: Tensor | Sequence[float] | float | None = None,
        amount: float = 1.0,
        *,
        positions: Any = "all",
        when: When | None = None,
    ) -> Steer:
        """Add `amount * direction` at a hook point, or all vectors of a direction: `Steer.along(direction, 4.0)`.

        Args:
            hook_point: the hook point, or a direction with vectors by hook point, such as `wb.directions.Direction`;
                its second argument is the amount.
            direction: of the hook point's width, heads one after another.
            amount: how much of it.
            positions: as for every intervention.
            when: as for every intervention.
        """
        if isinstance(hook_point, Vectors) and direction is not None:
            if amount != 1.0:
                raise EditError("Steer.along(direction, amount) takes no other direction; its vectors are its own.")
            amount, direction = direction, None  # type: ignore[assignment]
        name, vector = joined_vectors(hook_point, direction, "Steer.along")  # type: ignore[arg-type]
        return cls(None, amount, name, vector, positions=positions, when=when)  # type: ignore[arg-type]

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        """Latents and neurons; a code is present or absent."""
        return not dictionary.discrete

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        """The sum of value and amount; None for an amount of 0."""
        return None if self.amount == 0 else self.value_change(lambda old: old + self.amount, adds=self.amount)

    def edits(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """As for every feature, or one edit that adds the direction."""
        if self.direction is None:
            return super().edits(model, plan)
        edits = []
        for point, vector in self._vectors(model):
            plan.close(point.key)
            added = self.amount * torch.tensor(vector, device=model.device).view(point.shape)
            edits.append(Edit(point.name, _adding(added), self.positions, str(self)))
        return [] if self.amount == 0 else edits

    def _vectors(self, model: LanguageModel) -> list[tuple[HookPoint, tuple[float, ...]]]:
        """The part of the direction that is added at each hook point; raises `EditError` where the widths differ."""
        points = [model.hook_points[name] for name in (self.hook_point or "").split(JOIN)]
        values, widths = self.direction or (), [point.width for point in points]
        if len(values) != sum(widths):
            at = " and ".join(f"{point.name} is {point.width:,} wide" for point in points[:2])
            more = f", and {len(points) - 2} more" if len(points) > 2 else ""
            raise EditError(f"The direction has {len(values):,} values, but {at}{more}.")
        ends = [sum(widths[: place + 1]) for place in range(len(widths))]
        return [(point, values[end - point.width : end]) for point, end in zip(points, ends, strict=True)]

    def as_affine(self) -> Affine:
        """The amount."""
        return Affine(1.0, self.amount)

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """As for every feature, or the addition of the direction."""
        if self.direction is None:
            return super().affine_changes(model)
        if self.positions != "all":
            raise NotAffineError("it acts at some positions only, which weights can't tell apart")
        if JOIN not in (self.hook_point or ""):
            vector = self.amount * torch.tensor(self.direction)
            return [(self.hook_point or "", Add(vector.double()))] if self.amount else []
        parts = [(point.name, self.amount * torch.tensor(vector)) for point, vector in self._vectors(model)]
        return [(name, Add(vector.double())) for name, vector in parts] if self.amount else []

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `settings()`; along a direction no feature is needed."""
        needed: dict[str, Any] = {"feature": None} if "direction" in settings else {}
        return cls(**needed | dict(settings))

    def to_python(self, *first: str, when: str = "") -> str:
        """The call that makes it; along a direction, that of `Steer.along`."""
        if self.direction is None:
            return super().to_python(*first, when=when)
        rules = ("" if self.positions == "all" else f", positions={self.positions!r}") + self.condition(when)
        return f"Steer.along({self.hook_point!r}, {list(self.direction)!r}, {self.amount!r}{rules})"

    def __str__(self) -> str:
        return super().__str__() if self.direction is None else f"Steer(along {self.hook_point}, {self.amount:g})"


def _adding(added: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x + added.to(x)
