"""Scale: a feature's value is multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Affine
from workbench.interventions.protocol import FeatureIntervention
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Scale(FeatureIntervention):
    """Multiply the feature; 1 changes nothing, 0 ablates, -1 turns it round."""

    title: ClassVar[str] = "Scale"
    about: ClassVar[str] = "**Scale** multiplies the feature."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("factor", "Multiply by", 2.0, neutral=1.0, reach=5.0, step=0.1),
    )
    rank: ClassVar[int] = 2

    factor: float

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        """The product of value and factor; None for a factor of 1."""
        return None if self.factor == 1 else self.value_change(lambda old: old * self.factor)

    def as_affine(self) -> Affine:
        """The factor."""
        return Affine(self.factor, 0.0)
