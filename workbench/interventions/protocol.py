"""What every intervention declares and does; a new one is one file in `kinds/` with one class.

    @dataclass(frozen=True)
    class Halve(FeatureIntervention):
        \"\"\"Divide the feature by two, or by another number.\"\"\"

        title: ClassVar[str] = "Halve"
        arguments: ClassVar[tuple[Argument, ...]] = (Argument("by", "Divide by", 2.0, reach=8.0, step=0.5),)

        by: float = 2.0

        def change(self, model, dictionary):
            return self.value_change(lambda old: old / self.by)

        def as_affine(self):
            return Affine(1 / self.by, 0.0)

A class with a `title` of its own is registered in `INTERVENTIONS`; saving, the Steer page, `bake` and the tests' laws
read its declarations. An intervention binds itself into edits for one run. Whatever the dictionary, the edit adds
`decode(edited codes) - decode(codes)` at the dictionary's write hook point and leaves the rest of the activation alone;
for neurons this is the plain assignment. Interventions act in the order in which they are listed, on the run as splices
leave it; those on a feature of a spliced dictionary change the codes that it decodes.

Positions: `"all"`, `"prompt"` (before the first generated token), `"generated"` (from it on; the first generated token
is itself chosen at the last prompt position, so it is not affected) or a list of absolute positions from 0. Among them
every intervention takes a condition, `when=`: it then acts only where a feature or a direction says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

from torch import Tensor

from workbench.core.arguments import Argument
from workbench.core.precision import in_float64
from workbench.core.type_words import shown
from workbench.dictionaries.acting import changing
from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.features import Feature
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import check_order, sites
from workbench.dictionaries.spreading import Spread, adding
from workbench.interventions.affine import Add, Affine, AffineChange, Coordinate, NotAffineError
from workbench.interventions.features import check_named, dictionary_of
from workbench.interventions.when import When, check_known, conditional, let_through
from workbench.model.edits import BoundEdit, EditError, Masks, Positions
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan
from workbench.model.positions import as_positions

INTERVENTIONS: dict[str, type[InterventionKind]] = {}
"""Every intervention by its class's name in lower case."""


@dataclass(frozen=True)
class InterventionKind(ABC):
    """An intervention with declared arguments; its dataclass fields have their names."""

    title: ClassVar[str]
    """For people; a class that has none of its own is a base for others and is not registered."""
    about: ClassVar[str] = ""
    """One sentence on what it does, as Markdown."""
    arguments: ClassVar[tuple[Argument, ...]] = ()

    when: When | None = field(default=None, kw_only=True)
    """The condition under which it acts; None: always."""

    def __init_subclass__(cls) -> None:
        if "title" not in cls.__dict__:
            return
        other = INTERVENTIONS.setdefault(cls.__name__.lower(), cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"Two interventions are called {cls.__name__}: in {other.__module__} and {cls.__module__}.")
        INTERVENTIONS[cls.__name__.lower()] = cls

    def __post_init__(self) -> None:
        if not isinstance(self.when, When | None):
            raise EditError(f"when is a condition, such as When(feature, above=3.0), not {shown(self.when)}.")
        for argument in self.arguments:
            value = argument.check(getattr(self, argument.name), EditError)
            value = float(value) if argument.kind == "number" and value is not None else value
            object.__setattr__(self, argument.name, value)

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """One that changes something on this model, to try things on: with the first value of each argument."""
        return cls(**{one.name: one.default for one in cls.arguments if one.default is not None})

    def bind(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """Fresh edits for one run: those of `edits`, behind what notes where the condition holds.

        Raises:
            EditError: the model computes a hook point where it acts before the one where its condition reads.
        """
        if self.when is None:
            return self.edits(model, plan)
        condition, point = self.when.bind(model, plan, str(self))
        plan.condition = condition
        try:
            edits = self.edits(model, plan)
        finally:
            plan.condition = None
        acting = [model.hook_points[one.hook_point] for one in edits if not one.reads_only]
        check_known(model, condition, point, acting)
        return [condition, *(let_through(one, condition) for one in edits)]

    @abstractmethod
    def edits(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """Fresh edits for one run, as if it acted always; changes in a shared edit heed `plan.condition`."""

    def settle(self, model: LanguageModel) -> Self:
        """The same intervention with the values that it takes from the model filled in."""
        return self

    @abstractmethod
    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """The affine changes of activations that it comes to, with their hook points, for `bake`.

        Raises:
            NotAffineError: it is more than that.
        """

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Layers that need not be computed under it."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The values of its arguments, ready for JSON; those that are left out are missing."""
        values = {argument.name: getattr(self, argument.name) for argument in self.arguments}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The inverse of `settings()`, together with the feature and positions where there are some."""
        return cls(**settings)

    def to_python(self, *first: str, when: str = "") -> str:
        """The call that makes it, without a module's name.

        Args:
            first: the expressions of its first arguments.
            when: the expression of its condition; empty for the condition's own.
        """
        defaults = {one.name: one.default for one in fields(self)}
        values = [(argument.name, getattr(self, argument.name)) for argument in self.arguments]
        while values and defaults[values[-1][0]] is not MISSING and values[-1][1] == defaults[values[-1][0]]:
            values.pop()
        words = ", ".join([*first, *(repr(value) for _, value in values)])
        return f"{type(self).__name__}({words}{self.condition(when)})"

    def condition(self, expression: str = "") -> str:
        """The end of a call that states its condition, by an expression or the condition's own; empty without one."""
        return "" if self.when is None else f", when={expression or self.when.to_python()}"

    def __str__(self) -> str:
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in self.settings().values())
        return f"{type(self).__name__}({', '.join(values)})"


@dataclass(frozen=True)
class Variant:
    """One way to use an intervention that the Steer page offers."""

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of arguments that are choices."""


@dataclass(frozen=True)
class FeatureIntervention(InterventionKind):
    """An intervention on one feature."""

    rank: ClassVar[int] = 100
    """Lower ones come first in the Steer page's list."""
    not_affine: ClassVar[str] = "it depends on the input in a way that is not linear"
    """Why weights can't hold it, where `as_affine` is None."""

    feature: Feature
    positions: Positions = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))
        if not isinstance(self.feature, Feature):
            raise EditError(
                f"{type(self).__name__} takes a feature, such as neurons.29.gate:808, not {shown(self.feature)}."
            )
        check_named(self.feature)
        object.__setattr__(self, "positions", as_positions(self.positions))
        super().__post_init__()

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        """Whether the Steer page offers it for features of a dictionary."""
        return True

    @classmethod
    def variants(cls, dictionary: Dictionary) -> tuple[Variant, ...]:
        """The ways to use it that the Steer page offers for features of a dictionary that it fits."""
        return (Variant(cls.title),)

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """On a neuron of the first layer."""
        values = {one.name: one.default for one in cls.arguments if one.default is not None}
        return cls(Feature("neurons.0.post", 3), **values)

    @abstractmethod
    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | Rewrite | None:
        """The change of the feature's value, or of all codes; None where nothing changes."""

    def value_change(self, fn: Callable[[Tensor], Tensor], adds: float | None = None) -> Change:
        """The change of the feature's value `[...]` by a function, at this intervention's positions.

        Args:
            fn: from the value to the new one.
            adds: what it adds, where that is all that it does; such a change needs no value.
        """
        return Change(self.feature.index, fn, self.positions, str(self), adds)

    def as_affine(self) -> Affine | None:
        """The same as an affine map of the feature's value; None where it is none, or takes a value from the model."""
        return None

    def edits(self, model: LanguageModel, plan: Plan) -> Sequence[BoundEdit]:
        """Fresh edits for one run.

        Interventions on one dictionary share an edit as long as no other comes between them at its hook points, so that
        a later one sees the codes that an earlier one left. Where the model runs through the dictionary, they change
        the codes that the splice decodes.
        """
        dictionary = dictionary_of(model, self.feature)
        change = self.change(model, dictionary)
        if change is None:
            return []
        splices = plan.spliced(dictionary)
        if plan.condition is not None:
            change = conditional(change, plan.condition, model, dictionary, self.feature.index, spliced=bool(splices))
        for changes in splices:
            changes.append(change)
        if splices:
            return []
        at = sites(dictionary, model)
        adds = bool(at.late) and change.adds is not None if isinstance(change, Change) else False
        if not adds:
            check_order(dictionary, at)
        owner, reads, writes = (dictionary.name, id(self.feature.source)), at.reads, at.writes
        joined = plan.join(owner, [one.key for one in writes])
        if joined is not None:
            joined.append(change)
            return []
        changes: list[Change | Rewrite] = [change]
        plan.open(owner, [one.key for one in reads if not adds], [one.key for one in writes], changes)
        if adds:
            return adding(dictionary, at, changes, source=str(self))
        if at.several:
            return Spread(dictionary, at, changes, device=model.device, source=str(self), replaces=False).edits()

        def intervene(read: Tensor, written: Tensor, masks: Masks) -> Tensor:
            return dictionary.intervene(read, written, changes, masks)

        return changing(reads[0], writes[0], intervene, changes, device=model.device, source=str(self))

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """A change of one coordinate for a `dense` dictionary, the addition of the feature's direction for others."""
        if self.positions != "all":
            raise NotAffineError("it acts at some positions only, which weights can't tell apart")
        affine = self.as_affine()
        if affine is None:
            raise NotAffineError(self.not_affine)
        if affine == Affine(1.0, 0.0):
            return []
        dictionary = dictionary_of(model, self.feature)
        writes, index = sites(dictionary, model).writes, self.feature.index
        if dictionary.dense:
            return [(writes[0].name, Coordinate(index, affine.factor, affine.value))]
        if affine.factor != 1:
            raise NotAffineError(
                f"it depends on the input: how active the feature is, which {dictionary.name} works out"
            )
        if dictionary.rescales:
            raise NotAffineError(
                f"it depends on the input: {dictionary.name} multiplies what it writes by the size of each activation"
            )
        each = in_float64(dictionary.direction(index).detach()).chunk(len(writes))
        return [(point.name, Add(affine.value * one)) for point, one in zip(writes, each, strict=True) if one.any()]

    def to_python(self, *first: str, when: str = "") -> str:
        """The call that makes it; the expression of its feature is needed where the feature's name is not enough."""
        call = super().to_python(*(first or (repr(str(self.feature)),)), when=when)
        return call if self.positions == "all" else f"{call[:-1]}, positions={self.positions!r})"

    def __str__(self) -> str:
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in self.settings().values())
        return f"{type(self).__name__}({', '.join([str(self.feature), *values])})"


def feature_of(intervention: InterventionKind) -> Feature | None:
    """The feature of an intervention; None for one on a part of the model, or along a direction."""
    return intervention.feature if isinstance(intervention, FeatureIntervention) else None


def features_of(intervention: InterventionKind) -> list[Feature]:
    """The features that an intervention names: the one that it changes, and the one that its condition reads."""
    read = None if intervention.when is None else intervention.when.feature
    return [one for one in (feature_of(intervention), read) if isinstance(one, Feature)]
