"""RemoveHead: an attention head writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from workbench.core.arguments import Argument
from workbench.interventions.affine import AffineChange, Silence
from workbench.interventions.parts import check_layer
from workbench.interventions.protocol import InterventionKind
from workbench.model.edits import Edit, EditError
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan


@dataclass(frozen=True)
class RemoveHead(InterventionKind):
    """An attention head whose output is zero."""

    title: ClassVar[str] = "Remove a head"
    about: ClassVar[str] = "The output of an attention head is zero."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("layer", "Layer", 0, "whole", low=0),
        Argument("head", "Head", 0, "whole", low=0),
    )

    layer: int
    head: int

    def edits(self, model: LanguageModel, plan: Plan) -> list[Edit]:
        """A fresh edit for one run."""
        point = self.heads(model)
        plan.close(point.key)

        def silence(z: Tensor) -> Tensor:  # [..., n_heads, d_head]
            z = z.clone()
            z[..., self.head, :] = 0
            return z

        return [Edit(point.name, silence, source=str(self))]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """The head's coordinates become zero."""
        point = self.heads(model)
        width = point.shape[1]
        return [(point.name, Silence(self.head * width, (self.head + 1) * width))]

    def heads(self, model: LanguageModel) -> HookPoint:
        """The hook point of the layer's heads, `[n_heads, d_head]`; raises `EditError` if there is no such head."""
        check_layer(model, self.layer)
        point = model.hook_points[f"blocks.{self.layer}.attn.hook_z"]
        heads = point.shape[0] if len(point.shape) == 2 else 0
        if heads != model.network.n_heads:  # as in multi-head latent attention
            raise EditError(
                f"Heads of {model.name} can't be removed: {point.name} holds {tuple(point.shape)} where it "
                f"has {model.network.n_heads} heads."
            )
        if not 0 <= self.head < heads:
            raise EditError(f"There is no head {self.head!r}: this model has {heads} heads, 0 to {heads - 1}.")
        return point
