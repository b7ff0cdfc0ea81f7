"""Parts of a model larger than a neuron: its layers and sublayers, and the hook points where they write."""

from __future__ import annotations

import torch

from workbench.model.edits import Edit, EditError
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan

PARTS = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
"""The sublayers of a layer, and where they write."""


def writers(model: LanguageModel) -> list[str]:
    """Hook points of all that writes into the residual stream: embeddings, attention and MLP of each layer."""
    embeddings = [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_points]
    layers = range(model.network.n_layers)
    return [*embeddings, *(f"blocks.{layer}.{name}" for layer in layers for name in PARTS.values())]


def check_layer(model: LanguageModel, layer: int) -> None:
    """Raise `EditError` unless the model has a layer of this number."""
    number = model.network.n_layers
    if not 0 <= layer < number:
        raise EditError(f"There is no layer {layer!r}: {model.name} has {number} layers, 0 to {number - 1}.")


def silence(model: LanguageModel, plan: Plan, name: str, source: str) -> Edit:
    """An edit that sets a hook point to zero."""
    point = model.hook_points[name]
    plan.close(point.key)
    return Edit(point.name, torch.zeros_like, source=source)
