"""Edits on parts larger than a neuron, which weights can always express: layers, sublayers, heads, directions.

They bind themselves as every intervention does, so `model.generate(interventions=[RemoveLayer(3)])` shows beforehand
what `bake` will write into the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.model.edits import Edit, EditError
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel

PARTS = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
"""The sublayers of a layer, and where they write."""


@dataclass(frozen=True)
class RemoveLayer:
    """A layer that writes nothing into the residual stream; baked, it is gone."""

    layer: int

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """Fresh edits for one run."""
        _check_layer(model, self.layer)
        return [_silent(model, self.layer, part, str(self)) for part in PARTS]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"kind": "RemoveLayer", "layer": self.layer}

    def __str__(self) -> str:
        return f"RemoveLayer({self.layer})"


@dataclass(frozen=True)
class RemoveSublayer:
    """The attention or the MLP of a layer writes nothing; baked, what it would write with is zero."""

    layer: int
    part: str
    """`attention` or `mlp`."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise EditError(f"A sublayer is 'attention' or 'mlp', not {self.part!r}.")

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """Fresh edits for one run."""
        _check_layer(model, self.layer)
        return [_silent(model, self.layer, self.part, str(self))]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"kind": "RemoveSublayer", "layer": self.layer, "part": self.part}

    def __str__(self) -> str:
        return f"RemoveSublayer({self.layer}, {self.part!r})"


@dataclass(frozen=True)
class RemoveHead:
    """An attention head whose output is zero."""

    layer: int
    head: int

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """Fresh edits for one run."""
        point = self.place(model)

        def silence(z: Tensor) -> Tensor:  # [..., n_heads, d_head]
            z = z.clone()
            z[..., self.head, :] = 0
            return z

        return [Edit(point.name, silence, source=str(self))]

    def place(self, model: LanguageModel) -> HookPoint:
        """Where the heads have their outputs; raises `EditError` if there is no such head."""
        _check_layer(model, self.layer)
        point = model.hook_points[f"blocks.{self.layer}.attn.hook_z"]
        heads = point.shape[0] if len(point.shape) == 2 else 0
        if isinstance(self.head, bool) or not isinstance(self.head, int) or not 0 <= self.head < heads:
            raise EditError(f"There is no head {self.head!r}: this model has {heads} heads, 0 to {heads - 1}.")
        return point

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"kind": "RemoveHead", "layer": self.layer, "head": self.head}

    def __str__(self) -> str:
        return f"RemoveHead({self.layer}, {self.head})"


@dataclass(frozen=True)
class AblateDirection:
    """Nothing that writes into the residual stream writes along a direction: not the embeddings, no attention, no MLP.

    What reads from the stream, norms with their gains among it, is left as it is. Arditi et al., "Refusal in language
    models is mediated by a single direction" (2024), arXiv 2406.11717.
    """

    direction: tuple[float, ...] = field(repr=False)
    """Of the residual stream; its length does not matter."""

    def __post_init__(self) -> None:
        try:
            flat = tuple(torch.as_tensor(self.direction, dtype=torch.float32).flatten().tolist())
        except (TypeError, ValueError, RuntimeError) as error:
            raise EditError("The direction to ablate is a tensor or a list of numbers.") from error
        if not flat or not all(map(math.isfinite, flat)) or not any(flat):
            raise EditError("The direction to ablate needs finite values that are not all zero.")
        object.__setattr__(self, "direction", flat)

    def bind(self, model: LanguageModel, scratch: dict) -> list[Edit]:
        """Fresh edits for one run."""
        unit = self.unit(model)

        def take_out(x: Tensor) -> Tensor:  # [..., d_model]; rounded once, as the baked weights are
            exact = x.double()
            return (exact - (exact @ unit)[..., None] * unit).to(x.dtype)

        return [Edit(name, take_out, source=str(self)) for name in writers(model)]

    def unit(self, model: LanguageModel) -> Tensor:
        """The direction with length 1, `[d_model]`; raises `EditError` if it has another width than the model."""
        if len(self.direction) != model.network.d_model:
            raise EditError(
                f"The direction has {len(self.direction):,} values, but the residual stream of {model.name} is "
                f"{model.network.d_model:,} wide."
            )
        direction = torch.tensor(self.direction, dtype=torch.float64)
        return direction / direction.norm()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"kind": "AblateDirection", "direction": list(self.direction)}

    def __str__(self) -> str:
        return f"AblateDirection({len(self.direction)} values)"


def writers(model: LanguageModel) -> list[str]:
    """Hook points of all that writes into the residual stream: embeddings, attention and MLP of each layer."""
    embeddings = [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_points]
    layers = range(model.network.n_layers)
    return [*embeddings, *(f"blocks.{layer}.{where}" for layer in layers for where in PARTS.values())]


def layers_in(names: Sequence[str]) -> set[int]:
    """The layers that hook points belong to."""
    return {int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", name) for name in names) if found}


def _silent(model: LanguageModel, layer: int, part: str, source: str) -> Edit:
    name = f"blocks.{layer}.{PARTS[part]}"
    return Edit(model.hook_points[name].name, torch.zeros_like, source=source)


def _check_layer(model: LanguageModel, layer: object) -> None:
    number = model.network.n_layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < number:
        raise EditError(f"There is no layer {layer!r}: {model.name} has {number} layers, 0 to {number - 1}.")
