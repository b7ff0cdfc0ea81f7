"""Clamp: a feature has a constant value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Affine
from workbench.interventions.protocol import FeatureIntervention
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Clamp(FeatureIntervention):
    """Set the feature to a constant."""

    title: ClassVar[str] = "Clamp"
    about: ClassVar[str] = "**Clamp** holds the feature at a value."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("value", "Set to", 20.0, reach=40.0, step=0.5, follows_activation=True),
    )
    rank: ClassVar[int] = 1

    value: float

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        """The constant in place of the value."""
        return self.value_change(lambda old: torch.full_like(old, self.value))

    def as_affine(self) -> Affine:
        """The constant."""
        return Affine(0.0, self.value)
