"""Steer: a direction is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Add, Affine, AffineChange, NotAffineError
from workbench.interventions.protocol import FeatureIntervention, InterventionKind
from workbench.model.edits import BoundEdit, Edit, EditError, as_positions
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan


@dataclass(frozen=True)
class Steer(FeatureIntervention):
    """Add a direction: `x + amount * direction`.

    `Steer(feature, amount)` adds the feature's own direction where its dictionary writes, which for a neuron means
    adding to its value. `Steer.along(hook_point, direction, amount)` adds any direction anywhere.
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
        cls, hook_point: str, direction: Tensor | Sequence[float], amount: float = 1.0, *, positions: Any = "all"
    ) -> Steer:
        """Add `amount * direction` at a hook point; `direction` has the hook point's width, heads one after another."""
        if direction is None:
            raise EditError("Steer.along takes a direction, a tensor or a list of finite numbers, not None.")
        return cls(None, amount, hook_point, direction, positions=positions)  # type: ignore[arg-type]

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        """Latents and neurons; a code is present or absent."""
        return not dictionary.discrete

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        """The sum of value and amount; None for an amount of 0."""
        return None if self.amount == 0 else self.value_change(lambda old: old + self.amount, adds=self.amount)

    def bind(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """As for every feature, or one edit that adds the direction."""
        if self.direction is None:
            return super().bind(model, plan)
        point = model.hook_points[self.hook_point or ""]
        if len(self.direction) != point.width:
            raise EditError(
                f"The direction has {len(self.direction):,} values, but {point.name} is {point.width:,} wide."
            )
        plan.close(point.key)
        added = self.amount * torch.tensor(self.direction, device=model.device).view(point.shape)
        return [] if self.amount == 0 else [Edit(point.name, lambda x: x + added.to(x), self.positions, str(self))]

    def as_affine(self) -> Affine:
        """The amount."""
        return Affine(1.0, self.amount)

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """As for every feature, or the addition of the direction."""
        if self.direction is None:
            return super().affine_changes(model)
        if self.positions != "all":
            raise NotAffineError("it acts at some positions only, which weights can't tell apart")
        vector = self.amount * torch.tensor(self.direction)
        return [(self.hook_point or "", Add(vector.double()))] if self.amount else []

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `settings()`; along a direction no feature is needed."""
        needed: dict[str, Any] = {"feature": None} if "direction" in settings else {}
        return cls(**needed | dict(settings))

    def to_python(self, *first: str) -> str:
        """The call that makes it; along a direction, that of `Steer.along`."""
        if self.direction is None:
            return super().to_python(*first)
        positions = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"Steer.along({self.hook_point!r}, {list(self.direction)!r}, {self.amount!r}{positions})"

    def __str__(self) -> str:
        return super().__str__() if self.direction is None else f"Steer(along {self.hook_point}, {self.amount:g})"
