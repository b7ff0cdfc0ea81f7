"""Places in each layer that a lens reads: the stream, and what is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.lens.tokens import chosen_layers
from workbench.lens.transports import Lens
from workbench.model.edits import BoundEdit
from workbench.model.language_model import LanguageModel
from workbench.model.stream import StreamPath
from workbench.model.weights import ModelError

STREAM = {"resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post"}
"""Places of the stream, by their word, and their hook points in a block."""
ADDED = {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "heads": "attn.hook_z"}
"""Places of what is added to it."""
BEHIND = ("ln_final.hook_in", "ln_final.hook_out", "unembed.hook_in", "unembed.hook_out")
"""Hook points behind the last layer."""


@dataclass(frozen=True)
class Place:
    """One row of a grid."""

    layer: int
    hook_point: str
    head: int | None = None
    path: StreamPath | None = None
    """The way into the stream, of what is added to it."""

    @property
    def label(self) -> str:
        """For people: "12", or "12.3" for a head."""
        return str(self.layer) if self.head is None else f"{self.layer}.{self.head}"

    def stream(self, x: Tensor, lens: Lens) -> Tensor:
        """What the lens reads of the tensor at the hook point, `[pos, ...]`: `[pos, d_model]`."""
        if self.path is None:
            # in front of a layer stands what is behind the one before
            behind = self.layer - 1 if self.hook_point.endswith("hook_resid_pre") else self.layer
            return lens.transport(behind, x)
        if self.head is None:
            return lens.carried(self.layer, self.path.added(x))
        alone = torch.zeros_like(x)
        alone[..., self.head, :] = x[..., self.head, :]
        whole = x.flatten(-2)
        change = self.path.output(alone.flatten(-2)) - self.path.output(torch.zeros_like(whole))
        scales = self.path.scales(whole)
        part = self.path.directions(change)
        return lens.carried(self.layer, part if scales is None else scales * part)


def check_reached(model: LanguageModel, edits: Sequence[BoundEdit]) -> None:
    """Raise `LensError` where a bound edit acts behind the last layer, on what no row of a grid passes."""
    points = model.hook_points
    last = points[f"blocks.{model.network.n_layers - 1}.hook_resid_post"].key
    behind = {points[name].key: name for name in BEHIND if name in points and points[name].key != last}
    for edit in edits:
        if edit.hook_point in behind and not edit.reads_only:
            raise LensError(
                f"{model.name} predicts otherwise than its last layer's stream, by which a lens reads: an intervention "
                f"acts behind it, at {behind[edit.hook_point]}; leave that out."
            )


def places_of(model: LanguageModel, at: str, layers: Sequence[int] | None) -> list[Place]:
    """The rows of a grid, layer by layer.

    Raises:
        LensError: an unknown place, a layer that the model lacks, or a place that its layers lack.
    """
    if at not in STREAM and at not in ADDED:
        raise LensError(f"A lens reads at {', '.join([*STREAM, *ADDED])}, not at {shown(at)}.")
    places: list[Place] = []
    for layer in chosen_layers(model, layers):
        name = f"blocks.{layer}.{(STREAM | ADDED)[at]}"
        point = model.hook_points[name]
        if at in STREAM:
            places.append(Place(layer, name))
            continue
        try:
            path = model.network.into_stream(point)
        except ModelError as error:
            raise LensError(f"What stands at {name} of {model.name} can't be read alone: {error}") from error
        heads = range(point.shape[0]) if at == "heads" else [None]
        places += [Place(layer, name, head, path) for head in heads]
    return places
