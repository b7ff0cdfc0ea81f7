"""Conditions of interventions: where a feature, or what lies along a direction, says that they act.

Lee et al. 2024, "Programming Refusal with Conditional Activation Steering", arXiv 2409.05907, steer where the prompt's
activations lie along a condition vector. Here the condition is any feature's value, and it may decide token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.core.precision import in_float64
from workbench.core.type_words import shown
from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.directions import Directions
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import flattened, sites
from workbench.interventions.features import dictionary_of
from workbench.interventions.vectors import JOIN, Vectors, joined_vectors, vector_values
from workbench.model.conditions import Condition, Gated, Scope, ungated
from workbench.model.edits import BoundEdit, Edit, EditError
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan

NAMES = ("feature", "hook_point", "direction", "above", "below", "scope")


@dataclass(frozen=True)
class When:
    """Where an intervention acts: `Clamp(feature, 20.0, when=When(other, above=3.0))`.

    The condition holds where the feature's value is more than `above` and less than `below`, whichever is stated. It
    lets the intervention act, among its positions, by its `scope`: "token", where it holds; "onwards", from the first
    position on at which it holds; "prompt", the same, but only tokens of the prompt count, so that the prompt decides
    for the whole of what is written. It reads the run as the interventions listed before leave it, at a hook point that
    the model computes no later than the intervention's own. `When.along` reads a direction instead of a feature.

    Raises:
        EditError: no bound, bounds that nothing lies between, an unknown scope, or no feature.
    """

    feature: Feature | str | None
    above: float | None = None
    below: float | None = None
    scope: Scope = "token"
    hook_point: str | None = field(default=None, kw_only=True)
    """Where the direction is read."""
    direction: tuple[float, ...] | None = field(default=None, repr=False, kw_only=True)
    """A vector whose feature is the projection in units of its length; instead of a feature."""

    def __post_init__(self) -> None:
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))
        if (self.feature is None) == (self.direction is None) or not isinstance(self.feature, Feature | None):
            raise EditError(
                "A condition reads a feature, such as neurons.29.gate:808, or a direction: When.along(direction), not "
                f"{shown(self.feature)}."
            )
        if self.direction is not None:
            object.__setattr__(self, "direction", vector_values(self.direction, "direction"))
            if not isinstance(self.hook_point, str) or not any(self.direction):
                raise EditError("A condition along a direction needs a hook point and a vector that is not zero.")
        elif self.hook_point is not None:
            raise EditError("A condition on a feature reads where its dictionary does; leave out hook_point.")
        for name in ("above", "below"):
            bound = Argument(name, "", None).check(getattr(self, name), EditError)
            object.__setattr__(self, name, None if bound is None else float(bound))
        if self.above is None and self.below is None:
            raise EditError("A condition needs above= or below=, the value beyond which it holds.")
        if self.above is not None and self.below is not None and not self.above < self.below:
            raise EditError(f"Nothing is above {self.above:g} and below {self.below:g}; above has to be the lower one.")
        if not isinstance(self.scope, str) or self.scope not in get_args(Scope):
            raise EditError(f"scope is 'token', 'onwards' or 'prompt', not {shown(self.scope)}.")

    @classmethod
    def along(
        cls,
        hook_point: str | Vectors,
        direction: Tensor | Sequence[float] | None = None,
        above: float | None = None,
        below: float | None = None,
        scope: Scope = "token",
    ) -> When:
        """The condition on what lies along a direction: `x @ v / |v|²`, for a vector of length 1 the projection.

        Args:
            hook_point: the hook point, or a direction with one vector, such as `wb.find_direction` finds.
            direction: of the hook point's width; none beside a direction with a vector of its own.
            above: it holds for more than this.
            below: it holds for less than this.
            scope: as of `When`.
        """
        name, vector = joined_vectors(hook_point, direction, "When.along")
        if JOIN in name:
            raise EditError("A condition reads at one hook point; give When.along a direction with one vector.")
        return cls(None, above, below, scope, hook_point=name, direction=vector)  # type: ignore[arg-type]

    def dictionary(self, model: LanguageModel) -> Dictionary:
        """The dictionary whose feature it reads, on this model."""
        if self.feature is not None:
            return dictionary_of(model, self.feature)
        point = model.hook_points[self.hook_point or ""]
        return Directions(torch.tensor([self.direction]), point.name, "condition")

    def bind(self, model: LanguageModel, plan: Plan, source: str) -> tuple[Condition, HookPoint]:
        """The condition for one run, and the hook point where it reads.

        Args:
            model: the model.
            plan: of the run.
            source: the intervention, for error messages.

        Raises:
            FeatureError, DictionaryError, HookPointError: the model has no such feature, or none of one hook point.
        """
        dictionary = self.dictionary(model)
        point, *others = sites(dictionary, model).reads
        if others:
            raise DictionaryError(
                f"{dictionary.name} reads at {len(others) + 1} hook points, and a condition reads at one; choose a "
                "feature of another dictionary."
            )
        device = model.device
        index = self.feature.index if isinstance(self.feature, Feature) else 0

        def holds(x: Tensor) -> Tensor:
            flat = flattened(x, point)
            value = flat[..., index] if dictionary.dense else dictionary.encode(flat.to(device)).value_of(index)
            value = in_float64(value)  # a bound is compared as it is, not rounded to the value's type
            above = value > (-float("inf") if self.above is None else self.above)
            return above if self.below is None else above & (value < self.below)

        plan.close(point.key)
        return Condition(point.name, holds, (plan.number(), str(self)), self.scope, source), point

    def to_dict(self) -> dict[str, Any]:
        """The condition as plain data."""
        values = {name: getattr(self, name) for name in NAMES}
        values["feature"] = None if self.feature is None else str(self.feature)
        values["direction"] = None if self.direction is None else list(self.direction)
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> When:
        """The inverse of `to_dict`; raises `EditError` for anything else."""
        check_form(data, EditError)
        values: dict[str, Any] = {"feature": None} | dict(data)
        return cls(**values)

    def to_python(self, feature: str | None = None) -> str:
        """The call that makes it, without a module's name.

        Args:
            feature: the expression of its feature; None for the feature's name.
        """
        bounds = [f"{name}={getattr(self, name)!r}" for name in ("above", "below") if getattr(self, name) is not None]
        scope = [] if self.scope == "token" else [f"scope={self.scope!r}"]
        if self.direction is not None:
            return f"When.along({', '.join([repr(self.hook_point), repr(list(self.direction)), *bounds, *scope])})"
        return f"When({', '.join([feature or repr(str(self.feature)), *bounds, *scope])})"

    def __str__(self) -> str:
        what = f"the direction at {self.hook_point}" if self.feature is None else str(self.feature)
        bounds = [f"above {self.above:g}"] if self.above is not None else []
        bounds += [f"below {self.below:g}"] if self.below is not None else []
        where = {"token": "", "onwards": ", from there on", "prompt": " in the prompt"}[self.scope]
        return f"when {what} is {' and '.join(bounds)}{where}"


def check_known(
    model: LanguageModel, condition: Condition, reads: HookPoint, acting: Sequence[HookPoint], *, earlier: bool = False
) -> None:
    """Raise `EditError` where the model computes a hook point to act at before the one where a condition reads.

    Args:
        model: the model.
        condition: the condition.
        reads: its hook point.
        acting: those of the edits that it lets through.
        earlier: whether the condition has to be known before the hook point's edits, as those of a splice are.
    """
    order = [point.key or point.name for point in (model.hook_points[name] for name in model.hook_points)]
    known = order.index(reads.key or reads.name)
    for point in acting:
        place = order.index(point.key or point.name)
        if place < known or (earlier and place == known):
            raise EditError(
                f"{condition.source} acts at {point.name}, which the model computes before its condition is known, at "
                f"{reads.name}; let the condition read earlier, or act later."
            )


def let_through(edit: BoundEdit, condition: Condition) -> BoundEdit:
    """An edit at those of its positions that a condition lets through; a shared one heeds it in its parts."""
    if not isinstance(edit, Edit) or edit.reads_only:
        return edit
    return replace(edit, positions=Gated(ungated(edit.positions), condition))


def conditional(
    change: Change | Rewrite,
    condition: Condition,
    model: LanguageModel,
    dictionary: Dictionary,
    index: int,
    *,
    spliced: bool,
) -> Change | Rewrite:
    """The change of a feature at the positions that a condition lets through; raises `EditError` as `check_known`."""
    stage = next(one for one in dictionary.stages if index in one.features)
    points, reads = sites(dictionary, model).writes, model.hook_points[condition.hook_point]
    check_known(model, condition, reads, [points[number] for number in stage.writes], earlier=spliced)
    return replace(change, positions=Gated(ungated(change.positions), condition))


def check_form(data: Any, error: type[Exception]) -> None:
    """Raise `error` unless plain data has the names of a condition, and no others."""
    if not isinstance(data, Mapping):
        raise error(f"A condition is a record with above, below and what it reads, not {shown(data)}.")
    for name in data:
        if name not in NAMES:
            raise error(f"A condition has no setting {shown(name)}, only {', '.join(NAMES)}.")
    if "scope" not in data:
        raise error("A condition states its scope: token, onwards or prompt.")
