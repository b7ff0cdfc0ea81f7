"""Interventions: what to do with a feature while the model runs.

An intervention names a feature and binds itself into edits for one run. Whatever the dictionary, the edit adds
`decode(edited codes) - decode(codes)` at the dictionary's write hook point and leaves the rest of the activation alone;
for neurons this is the plain assignment. Interventions act in the order in which they are given, on the run as splices
leave it; those on a feature of a spliced dictionary change the codes that it decodes.

Positions: `"all"`, `"prompt"` (before the first generated token), `"generated"` (from it on; the first generated token
is itself chosen at the last prompt position, so it is not affected) or a list of absolute positions from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.dictionaries.acting import acting, places
from workbench.dictionaries.codes import Change, Codes, Rewrite
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.protocol import Dictionary
from workbench.model.edits import Edit, EditError, Positions, as_positions, only_at
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.model.weights import ModelError

REFERENCE_TEXTS = (
    "The river was high after three days of rain, and the old bridge had been closed to traffic since Monday morning.",
    "To bake a simple loaf, mix flour, water, salt and yeast; let it rise for an hour; then bake it until it is brown.",
    "Dear Anna, thank you for your letter. We arrived safely, the children are well, and the garden is full of roses.",
    "In 1969 two astronauts walked on the Moon, while a third circled above them and waited for their return.",
    "def mean(numbers):\n    if not numbers:\n        raise ValueError('none')\n    return sum(numbers) / len(numbers)",
    "The committee will meet on Thursday to discuss the budget, the new school and the town hall's roof.",
    "A triangle with sides of 3, 4 and 5 has a right angle, because 9 plus 16 is 25.",
    '"Where have you been?" asked her brother. "I was looking for the dog," she said, "but he slept under my bed."',
)
"""What `Ablate(feature, "mean")` takes its mean over when it is given none; a fixed text, so that the mean is too."""


def dictionary_of(model: LanguageModel, feature: Feature | str) -> Dictionary:
    """The dictionary that a feature belongs to, on this model; the feature is checked against it.

    Raises:
        FeatureError: the model has no such feature.
        DictionaryError: the feature belongs to a trained dictionary that is not loaded.
    """
    feature = Feature.parse(feature) if isinstance(feature, str) else feature
    if isinstance(feature.source, Dictionary):
        feature.source.check(feature.index)
        return feature.source
    words = feature.dictionary.split(".")
    if words[0] != "neurons":
        raise DictionaryError(
            f"{feature.dictionary} is not loaded; load_dictionary() it and use its .feature({feature.index})."
        )
    if len(words) != 3 or not words[1].isdecimal():
        raise FeatureError(
            f"{feature.dictionary!r} is not a layer's neurons: write neurons.LAYER.SITE, such as neurons.29.gate."
        )
    try:
        point = model.network.neuron_hook_point(int(words[1]), words[2])
    except ModelError as error:
        raise FeatureError(f"{feature}: {error}") from error
    neurons = Neurons(feature.dictionary, point.name, point.width)
    neurons.check(feature.index)
    return neurons


@dataclass(frozen=True)
class FeatureIntervention(ABC):
    """One thing to do with one feature; every kind below is one of these."""

    feature: Feature
    positions: Positions = field(default="all", kw_only=True)

    kinds: ClassVar[dict[str, type[FeatureIntervention]]] = {}

    def __init_subclass__(cls) -> None:
        FeatureIntervention.kinds[cls.__name__.lower()] = cls

    def __post_init__(self) -> None:
        if isinstance(self.feature, str):
            object.__setattr__(self, "feature", Feature.parse(self.feature))
        if not isinstance(self.feature, Feature):
            raise EditError(
                f"{type(self).__name__} takes a feature, such as neurons.29.gate:808, not {self.feature!r}."
            )
        object.__setattr__(self, "positions", as_positions(self.positions))

    @abstractmethod
    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        """The feature's index and what becomes of its value; None where nothing changes."""

    def where_it_acts(self, dictionary: Dictionary, change: Change) -> Change | Rewrite:
        """The change, held to this intervention's positions."""
        index, alter = change
        return index, only_at(self.positions, alter)

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """Fresh edits for one run.

        Interventions on one dictionary share an edit as long as no other comes between them at its hook points, so that
        a later one sees the codes that an earlier one left. Where the model runs through the dictionary, they change
        the codes that the splice decodes.
        """
        dictionary = dictionary_of(model, self.feature)
        change = self.change(model, dictionary)
        if change is None:
            return []
        here = self.where_it_acts(dictionary, change)
        spliced = scratch.get("spliced", {}).get(id(dictionary), ())
        for _, changes in spliced:
            changes.append(here)
        if spliced:
            return [self._marker(hook_point) for hook_point, _ in spliced]
        reads, writes = places(dictionary, model.hook_points)
        groups = scratch.setdefault("groups", {})
        own = dictionary.name, id(self.feature.source)
        last, changes, _ = groups.get(writes.key, (None, [], ""))
        if last == own:
            changes.append(here)
            return [self._marker(writes.name)]
        changes = [here]
        _close(groups, writes.key)
        groups.pop(reads.key, None)
        groups[writes.key] = own, changes, reads.key

        def intervene(read: Tensor, written: Tensor) -> Tensor:
            return dictionary.intervene(read, written, changes)

        return [*acting(dictionary, reads, writes, intervene, str(self)), self._marker(writes.name)]

    def _marker(self, hook_point: str) -> Edit:
        """An edit without effect, by which the run knows at which positions this intervention acts."""
        return Edit(hook_point, lambda x: x, self.positions, str(self))

    def settings(self) -> dict[str, Any]:
        """What the kind adds to feature and positions, ready for JSON."""
        return {}

    def __str__(self) -> str:
        inside = "".join(
            f", {value:g}" if isinstance(value, float) else f", {value}" for value in self.settings().values()
        )
        return f"{type(self).__name__}({self.feature}{inside})"


@dataclass(frozen=True)
class Clamp(FeatureIntervention):
    """Set the feature to a constant."""

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(self, "value")

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        return self.feature.index, lambda old: torch.full_like(old, self.value)

    def settings(self) -> dict[str, Any]:
        return {"value": float(self.value)}


@dataclass(frozen=True)
class Scale(FeatureIntervention):
    """Multiply the feature; 1 changes nothing, 0 ablates, -1 turns it round."""

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(self, "factor")

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        return None if self.factor == 1 else (self.feature.index, lambda old: old * self.factor)

    def settings(self) -> dict[str, Any]:
        return {"factor": float(self.factor)}


@dataclass(frozen=True)
class Ablate(FeatureIntervention):
    """Take the feature out: set it to zero, or to its mean.

    `mean` is the value to set in mode "mean"; without it, the feature's mean over `REFERENCE_TEXTS` on this model.
    """

    mode: str = "zero"
    mean: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("zero", "mean"):
            raise EditError(f"Ablate's mode is 'zero' or 'mean', not {self.mode!r}.")
        if self.mean is not None:
            _finite(self, "mean")

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        if self.mode == "zero":
            return self.feature.index, torch.zeros_like
        mean = mean_value(model, dictionary, self.feature.index) if self.mean is None else self.mean
        return self.feature.index, lambda old: torch.full_like(old, mean)

    def settings(self) -> dict[str, Any]:
        return {"mode": self.mode} | ({} if self.mean is None else {"mean": float(self.mean)})


@dataclass(frozen=True)
class Steer(FeatureIntervention):
    """Add a direction: `x + amount * direction`.

    `Steer(feature, amount)` adds the feature's own direction where its dictionary writes, which for a neuron means
    adding to its value. `Steer.along(hook_point, direction, amount)` adds any direction anywhere.
    """

    amount: float
    hook_point: str | None = None
    direction: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.direction is None:
            super().__post_init__()
        else:
            object.__setattr__(self, "positions", as_positions(self.positions))
            try:
                object.__setattr__(self, "direction", tuple(map(float, self.direction)))
            except (TypeError, ValueError, OverflowError) as error:
                raise EditError("The direction to steer along is a tensor or a list of numbers.") from error
            if not all(map(math.isfinite, self.direction)):
                raise EditError("The direction to steer along has a value that is not a finite number.")
        _finite(self, "amount")

    @classmethod
    def along(
        cls, hook_point: str, direction: Tensor | Sequence[float], amount: float = 1.0, *, positions: Any = "all"
    ) -> Steer:
        """Add `amount * direction` at a hook point; `direction` has the hook point's width, heads one after another."""
        try:
            flat = tuple(torch.as_tensor(direction, dtype=torch.float32).flatten().tolist())
        except (TypeError, ValueError, RuntimeError) as error:
            raise EditError("The direction to steer along is a tensor or a list of numbers.") from error
        return cls(None, amount, hook_point, flat, positions=positions)  # type: ignore[arg-type]

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """As for every feature, or one edit that adds the direction given."""
        if self.direction is None:
            return super().bind(model, scratch)
        point = model.hook_points[self.hook_point or ""]
        if len(self.direction) != point.width:
            raise EditError(
                f"The direction has {len(self.direction):,} values, but {point.name} is {point.width:,} wide."
            )
        _close(scratch.get("groups", {}), point.key)
        added = self.amount * torch.tensor(self.direction).view(point.shape)
        return [] if self.amount == 0 else [Edit(point.name, lambda x: x + added.to(x), self.positions, str(self))]

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        return None if self.amount == 0 else (self.feature.index, lambda old: old + self.amount)

    def settings(self) -> dict[str, Any]:
        own = {"amount": float(self.amount)}
        return (
            own if self.direction is None else own | {"hook_point": self.hook_point, "direction": list(self.direction)}
        )

    def __str__(self) -> str:
        return super().__str__() if self.direction is None else f"Steer(along {self.hook_point}, {self.amount:g})"


@dataclass(frozen=True)
class Force(FeatureIntervention):
    """Activate a code of a codebook.

    `replaces` says what makes way for it in its group: "least", the least similar of the chosen codes; "all" of them;
    or "none" (Tamkin et al. 2023, arXiv 2310.17230). On a model that runs through the codebook the code is forced in
    what is decoded; on one that does not, the difference of the decodings is added, as for every feature.
    """

    replaces: str = "least"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replaces not in ("least", "all", "none"):
            raise EditError(f"What a forced code replaces is 'least', 'all' or 'none', not {self.replaces!r}.")

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        nothing = torch.zeros(0)
        dictionary.force(Codes(nothing, nothing.long(), dictionary.n_features), self.feature.index, self.replaces)
        return self.feature.index, torch.ones_like

    def where_it_acts(self, dictionary: Dictionary, change: Change) -> Rewrite:
        """All codes of an activation are rewritten together."""

        def rewrite(codes: Codes) -> Codes:
            forced = dictionary.force(codes, self.feature.index, self.replaces)
            before = torch.nn.functional.pad(codes.values, (1, 0))
            values = only_at(self.positions, lambda old: forced.values)(before)
            return Codes(values, forced.indices, codes.n_features)

        return rewrite

    def settings(self) -> dict[str, Any]:
        return {"replaces": self.replaces}


def _close(groups: dict[str, tuple[Any, list, str]], key: str) -> None:
    """What is about to be edited at a hook point shall be seen by whoever reads or writes there next."""
    for writes, (_, _, reads) in list(groups.items()):
        if key in (writes, reads):
            del groups[writes]


def mean_value(model: LanguageModel, dictionary: Dictionary, index: int) -> float:
    """A feature's mean over the tokens of `REFERENCE_TEXTS`, with no intervention or splice in force.

    For a trained dictionary the first token of each text does not count: it is where the model's attention sinks, with
    activations a hundred times larger than elsewhere, on which dictionaries are not trained.
    """
    reads, _ = places(dictionary, model.hook_points)
    first = 0 if isinstance(dictionary, Neurons) else 1
    total, count = 0.0, 0
    with uninterrupted(), torch.inference_mode():
        for text in REFERENCE_TEXTS:
            tokens = model.to_tokens(text)[:, : model.network.n_ctx]
            x = model.capture(tokens, [reads.name])[reads.name][0, first:]  # [pos, *shape]
            value = dictionary.encode(x.flatten(1)).value_of(index)
            total, count = total + float(value.sum()), count + len(value)
    return total / count


def _finite(intervention: FeatureIntervention, name: str) -> None:
    value, largest = getattr(intervention, name), torch.finfo(torch.float32).max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise EditError(f"{type(intervention).__name__} needs a finite number as its {name}, not {value!r}.")
    object.__setattr__(intervention, name, float(value))
