"""RemoveSublayer: the attention or the MLP of a layer writes nothing."""

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
class RemoveSublayer(InterventionKind):
    """The attention or the MLP of a layer writes nothing; baked, the matrix with which it writes is zero."""

    title: ClassVar[str] = "Remove attention or an MLP"
    about: ClassVar[str] = "The attention or the MLP of a layer writes nothing into the residual stream."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("layer", "Layer", 0, "whole", low=0),
        Argument("part", "Part", "attention", "choice", choices=tuple(PARTS)),
    )

    layer: int
    part: str
    """`attention` or `mlp`."""

    def edits(self, model: LanguageModel, plan: Plan) -> list[Edit]:
        """A fresh edit for one run: the sublayer writes zero."""
        check_layer(model, self.layer)
        return [silence(model, plan, self.layer, self.part, str(self))]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """What the sublayer writes becomes zero."""
        return [(f"blocks.{self.layer}.{PARTS[self.part]}", Silence())]

    def __str__(self) -> str:
        return f"RemoveSublayer({self.layer}, {self.part!r})"
