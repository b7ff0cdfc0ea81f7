"""RemoveLayer: a layer writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.core.arguments import Argument
from workbench.interventions.affine import AffineChange, Silence
from workbench.interventions.parts import PARTS, check_layer, silence
from workbench.interventions.protocol import InterventionKind
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan


@dataclass(frozen=True)
class RemoveLayer(InterventionKind):
    """A layer that writes nothing into the residual stream; baked, it is gone."""

    title: ClassVar[str] = "Remove a layer"
    about: ClassVar[str] = "A layer writes nothing into the residual stream."
    arguments: ClassVar[tuple[Argument, ...]] = (Argument("layer", "Layer", 0, "whole", low=0),)

    layer: int

    def edits(self, model: LanguageModel, plan: Plan) -> list[Edit]:
        """Fresh edits for one run: attention and MLP write zero."""
        check_layer(model, self.layer)
        return [silence(model, plan, self.layer, part, str(self)) for part in PARTS]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """What attention and MLP write becomes zero."""
        return [(f"blocks.{self.layer}.{name}", Silence()) for name in PARTS.values()]

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """The layer; none under a condition, where it may have to be computed."""
        return (self.layer,) if self.when is None else ()
