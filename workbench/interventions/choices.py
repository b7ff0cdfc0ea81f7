"""What the Steer page offers for a feature, read from the interventions' declarations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.arguments import Argument
from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.protocol import INTERVENTIONS, FeatureIntervention, InterventionKind
from workbench.model.edits import Positions


@dataclass(frozen=True)
class Choice(Shown):
    """One entry of the list of what can be done with a feature."""

    title: str
    kind: type[FeatureIntervention]
    settings: Mapping[str, Any]
    """Values of arguments that this entry stands for."""

    @property
    def strength(self) -> Argument | None:
        """The argument that says how strong the intervention is; None where it has none."""
        return strength_of(self.kind)

    def make(
        self, feature: Feature, strength: float | None = None, positions: Positions = "all"
    ) -> FeatureIntervention:
        """The intervention on a feature; without a strength, with the first value of its argument."""
        settings = dict(self.settings)
        if self.strength is not None:
            settings[self.strength.name] = self.strength.default if strength is None else strength
        return self.kind(feature, positions=positions, **settings)

    def describes(self, intervention: FeatureIntervention) -> bool:
        """Whether an intervention is of this kind and has these settings."""
        return type(intervention) is self.kind and all(
            getattr(intervention, name) == value for name, value in self.settings.items()
        )


@checked(DictionaryError)
def choices(dictionary: Dictionary) -> list[Choice]:
    """What can be done with the features of a dictionary, the likeliest first."""
    kinds = [kind for kind in INTERVENTIONS.values() if issubclass(kind, FeatureIntervention)]
    return [
        Choice(variant.title, kind, variant.settings)
        for kind in sorted(kinds, key=lambda kind: (kind.rank, kind.title))
        if kind.fits(dictionary)
        for variant in kind.variants(dictionary)
    ]


def choice_of(intervention: FeatureIntervention, dictionary: Dictionary) -> Choice:
    """The choice that made an intervention; for one that is not offered for the dictionary, a choice of its own."""
    for choice in choices(dictionary):
        if choice.describes(intervention):
            return choice
    kind, words = type(intervention), [one.name for one in intervention.arguments if one.kind == "choice"]
    return Choice(kind.title, kind, {name: getattr(intervention, name) for name in words})


def strength_of(kind: type[InterventionKind]) -> Argument | None:
    """The argument that says how strong interventions of a kind are; None where they have none."""
    return next((one for one in kind.arguments if one.reach is not None), None)
