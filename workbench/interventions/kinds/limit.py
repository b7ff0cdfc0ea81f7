"""Limit: a feature is at least, or at most, a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.protocol import FeatureIntervention, Variant
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Limit(FeatureIntervention):
    """Add to the feature what it lacks of a value: `old + share * (bounded - old)`.

    `bounded` is `max(old, value)` on the side "least", and `min(old, value)` on the side "most". Where the feature has
    as much already, nothing changes, so that the strength follows from how much is missing. On the feature of a
    direction, `Limit(direction.feature, 8.0)` adds as much of the direction as its projection lacks of 8.
    """

    title: ClassVar[str] = "Limit"
    about: ClassVar[str] = "**At least** adds what the feature lacks of a value, and nothing where it has as much."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("value", "At least", 20.0, reach=40.0, step=0.5, follows_activation=True),
        Argument("side", "Side", "least", "choice", choices=("least", "most")),
        Argument("share", "Share of what is missing", 1.0, low=0, high=1, neutral=0.0),
    )
    rank: ClassVar[int] = 5
    not_affine: ClassVar[str] = "how much it adds depends on how active the feature is"

    value: float
    side: str = "least"
    share: float = 1.0

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        """Latents and neurons; a code is present or absent."""
        return not dictionary.discrete

    @classmethod
    def variants(cls, dictionary: Dictionary) -> tuple[Variant, ...]:
        """The lower bound."""
        return (Variant("At least", {"side": "least"}),)

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change | None:
        """The share of what is missing; None for a share of 0."""
        return None if self.share == 0 else self.value_change(self._limited)

    def _limited(self, old: Tensor) -> Tensor:
        bounded = old.clamp(min=self.value) if self.side == "least" else old.clamp(max=self.value)
        return bounded if self.share == 1 else old + self.share * (bounded - old)
