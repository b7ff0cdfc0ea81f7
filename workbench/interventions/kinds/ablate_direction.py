"""AblateDirection: nothing writes along a direction.

Arditi et al., "Refusal in language models is mediated by a single direction" (2024), arXiv 2406.11717.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.core.checks import LARGEST_INTEGER, as_integer
from workbench.core.precision import float64_device, in_float64
from workbench.core.type_words import shown
from workbench.interventions.affine import AffineChange, Project
from workbench.interventions.parts import FIRST, PARTS, check_layer, check_writers, writers
from workbench.interventions.protocol import InterventionKind
from workbench.model.edits import Edit, EditError
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan

PARALLEL = 1e-6
"""The least singular value of directions of length 1 that span a space of their own."""


@dataclass(frozen=True)
class AblateDirection(InterventionKind):
    """Nothing that writes into the residual stream writes along a direction: not the embeddings, no attention, no MLP.

    With `more` nothing writes into the space that several directions span, and with `layers` only attention and MLPs of
    these layers are kept from it. What reads from the stream, norms with their gains among it, is left as it is.
    """

    title: ClassVar[str] = "Ablate a direction"
    about: ClassVar[str] = "No embedding, attention or MLP writes along the direction."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("direction", "Direction", (), "direction"),
        Argument("more", "Further directions", None, "direction"),
        Argument("layers", "Layers", None, "layers", help="Every layer and the embeddings where it is left out."),
    )

    direction: tuple[float, ...] = field(repr=False)
    """Of the residual stream, `[d_model]`; its length does not matter."""
    more: tuple[float, ...] | None = field(default=None, repr=False)
    """Further directions `[n, d_model]`, one after another."""
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", self._whole(self.layers))
        super().__post_init__()
        if not any(self.direction):
            raise EditError("The direction to ablate needs finite values that are not all zero.")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.more is not None and (not self.more or len(self.more) % len(self.direction)):
            raise EditError(
                f"Further directions to ablate are as wide as the first, {len(self.direction):,} values each, not "
                f"{len(self.more):,} in all."
            )
        if self.more is not None and not self._lengths().min() > PARALLEL:
            raise EditError("A direction to ablate is zero or lies in the span of the others; leave it out.")

    @classmethod
    def example(cls, model: LanguageModel) -> Self:
        """Along a fixed direction."""
        return cls(torch.arange(1.0, model.network.d_model + 1).sin())  # type: ignore[arg-type]

    def edits(self, model: LanguageModel, plan: Plan) -> list[Edit]:
        """Fresh edits for one run, one for each writer."""
        basis = self.basis(model)
        names = self._writers(model)
        for name in names:
            plan.close(model.hook_points[name].key)

        def take_out(x: Tensor) -> Tensor:  # [..., d_model]; rounded once, as the baked weights are
            exact = in_float64(x)
            for unit in basis:
                exact = exact - (exact @ unit)[..., None] * unit
            return exact.to(x.dtype).to(x.device)

        return [Edit(name, take_out, source=str(self)) for name in names]

    def affine_changes(self, model: LanguageModel) -> list[tuple[str, AffineChange]]:
        """A projection of what each writer writes."""
        return [(name, Project(unit)) for name in self._writers(model) for unit in self.basis(model)]

    def _writers(self, model: LanguageModel) -> list[str]:
        """All that writes into the stream; raises `EditError` where it does not sum to the stream."""
        if self.layers is None:
            check_writers(model, [FIRST, *range(model.network.n_layers)])
            return writers(model)
        for layer in self.layers:
            check_layer(model, layer)
        check_writers(model, self.layers)
        return [f"blocks.{layer}.{name}" for layer in self.layers for name in PARTS.values()]

    def basis(self, model: LanguageModel) -> Tensor:
        """An orthonormal basis of what the directions span, `[n, d_model]` in float64.

        Raises:
            EditError: directions of another width than the model.
        """
        if len(self.direction) != model.network.d_model:
            raise EditError(
                f"The direction has {len(self.direction):,} values, but the residual stream of {model.name} is "
                f"{model.network.d_model:,} wide."
            )
        rows = self._rows().to(float64_device(model.device))
        return rows / rows.norm() if len(rows) == 1 else torch.linalg.qr(rows.T).Q.T

    def _rows(self) -> Tensor:
        """Every direction, `[n, d_model]` in float64, none longer than 1."""
        rows = torch.tensor([*self.direction, *(self.more or ())], dtype=torch.float64).view(-1, len(self.direction))
        return rows if len(rows) == 1 else torch.nn.functional.normalize(rows, dim=1)

    def _lengths(self) -> Tensor:
        """How long the directions are across each other: singular values, as many as there are directions."""
        rows = self._rows()
        return torch.linalg.svdvals(rows) if len(rows) <= rows.shape[1] else torch.zeros(1)

    @staticmethod
    def _whole(layers: Any) -> tuple[int, ...]:
        """Layers as sorted whole numbers; raises `EditError` for others, and for none."""
        listed = isinstance(layers, Sequence | np.ndarray) and not isinstance(layers, str | bytes)
        numbers = [as_integer(one) for one in layers] if listed else []
        if not numbers or any(one is None or not 0 <= one <= LARGEST_INTEGER for one in numbers):
            raise EditError(f"layers is a list of layers, whole numbers from 0, not {shown(layers)}.")
        return tuple(sorted({one for one in numbers if one is not None}))

    def __str__(self) -> str:
        several = f", {1 + len(self.more) // len(self.direction)} directions" if self.more else ""
        layers = f", layers {', '.join(map(str, self.layers))}" if self.layers else ""
        return f"AblateDirection({len(self.direction)} values{several}{layers})"
