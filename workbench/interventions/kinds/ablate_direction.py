"""AblateDirection: nothing writes along a direction.

Arditi et al., "Refusal in language models is mediated by a single direction" (2024), arXiv 2406.11717.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.core.precision import float64_device, in_float64
from workbench.interventions.affine import AffineChange, Project
from workbench.interventions.parts import FIRST, check_writers, writers
from workbench.interventions.protocol import InterventionKind
from workbench.model.edits import Edit, EditError
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan


@dataclass(frozen=True)
class AblateDirection(InterventionKind):
    """Nothing that writes into the residual stream writes along a direction: not the embeddings, no attention, no MLP.

    What reads from the stream, norms with their gains among it, is left as it is.
    """

    title: ClassVar[str] = "Ablate a direction"
    about: ClassVar[str] = "No embedding, attention or MLP writes along the direction."
    arguments: ClassVar[tuple[Argument, ...]] = (Argument("direction", "Direction", (), "direction"),)

    direction: tuple[float, ...] = field(repr=False)
    """Of the residual stream, `[d_model]`; its length does not matter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.direction):
            raise EditError("The direction to ablate needs finite values that are not all zero.")

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """Along a fixed direction."""
        return cls(torch.arange(1.0, model.network.d_model + 1).sin())  # type: ignore[arg-type]

    def edits(self, model: LanguageModel, plan: Plan) -> list[Edit]:
        """Fresh edits for one run, one for each writer."""
        unit = self.unit(model)
        names = self._writers(model)
        for name in names:
            plan.close(model.hook_points[name].key)

        def take_out(x: Tensor) -> Tensor:  # [..., d_model]; rounded once, as the baked weights are
            exact = in_float64(x)
            return (exact - (exact @ unit)[..., None] * unit).to(x.dtype).to(x.device)

        return [Edit(name, take_out, source=str(self)) for name in names]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """A projection of what each writer writes."""
        return [(name, Project(self.unit(model))) for name in self._writers(model)]

    def _writers(self, model: LanguageModel) -> list[str]:
        """All that writes into the stream; raises `EditError` where it does not sum to the stream."""
        check_writers(model, [FIRST, *range(model.network.n_layers)])
        return writers(model)

    def unit(self, model: LanguageModel) -> Tensor:
        """The direction with length 1, `[d_model]`; raises `EditError` if it has another width than the model."""
        if len(self.direction) != model.network.d_model:
            raise EditError(
                f"The direction has {len(self.direction):,} values, but the residual stream of {model.name} is "
                f"{model.network.d_model:,} wide."
            )
        direction = torch.tensor(self.direction, dtype=torch.float64, device=float64_device(model.device))
        return direction / direction.norm()

    def __str__(self) -> str:
        return f"AblateDirection({len(self.direction)} values)"
