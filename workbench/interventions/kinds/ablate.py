"""Ablate: a feature is zero, or its mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Affine
from workbench.interventions.features import dictionary_of, mean_value
from workbench.interventions.protocol import FeatureIntervention, Variant
from workbench.model.language_model import LanguageModel

ZERO, MEAN = Variant("Ablate to zero", {"mode": "zero"}), Variant("Ablate to mean", {"mode": "mean"})


@dataclass(frozen=True)
class Ablate(FeatureIntervention):
    """Take the feature out: set it to zero, or to its mean.

    `mean` is the value to set in mode "mean"; without it, the feature's mean over `REFERENCE_TEXTS` on the model.
    """

    title: ClassVar[str] = "Ablate"
    about: ClassVar[str] = "**Ablate** sets the feature to zero or to its mean."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("mode", "Set to", "zero", "choice", choices=("zero", "mean")),
        Argument("mean", "Mean", None, help="Measured on fixed texts where it is left out."),
    )
    rank: ClassVar[int] = 3

    mode: str = "zero"
    mean: float | None = None

    @classmethod
    def variants(cls, dictionary: Dictionary) -> tuple[Variant, ...]:
        """Zero and mean; zero alone for codes."""
        return (ZERO,) if dictionary.discrete else (ZERO, MEAN)

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        """Zero or the mean in place of the value."""
        if self.mode == "zero":
            return self.value_change(torch.zeros_like)
        mean = mean_value(model, dictionary, self.feature.index) if self.mean is None else self.mean
        return self.value_change(lambda old: torch.full_like(old, mean))

    def settle(self, model: LanguageModel) -> Self:
        """The same with its mean on this model, where none is stated."""
        if self.mode == "zero" or self.mean is not None:
            return self
        return replace(self, mean=mean_value(model, dictionary_of(model, self.feature), self.feature.index))

    def as_affine(self) -> Affine | None:
        """Zero, or the mean where it is stated."""
        value = 0.0 if self.mode == "zero" else self.mean
        return None if value is None else Affine(0.0, value)
