"""Layers without the causal mask, for tasks in which every token gets a label.

Dukić and Šnajder, "Looking Right is Sometimes Right" (2024), arXiv 2401.14556: decoders label sequences better, after
fine-tuning, when groups of their layers attend to later tokens too; which groups, depends on the task. `labelling.py`
has such tasks, and `heal` trains on them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.checks import Integer, checked
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model
from workbench.surgery.operations.custom import CustomChild, make_custom
from workbench.surgery.registry import Argument, Operation, register

WHY = (
    "Plain transformers masks later tokens in every layer, so a model of which some layers see ahead can't be saved as "
    "an ordinary checkpoint."
)


CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
"""Names of the cache of keys and values in attention modules."""


@checked(SurgeryError)
def remove_causal_mask(model: LanguageModel | Child, layers: Sequence[Integer] | None = None) -> CustomChild:
    """A child without the causal mask in the attention of some layers; it can't be saved.

    Padding stays masked, and a sliding window reaches as far to the right as to the left. Such a model labels whole
    texts; it can't generate with a key-value cache, since every new token would change the keys and values before it.

    Args:
        model: a model or a child; it stays as it is.
        layers: by their numbers; None for all.

    Raises:
        SurgeryError: no layer, one that does not exist, or an architecture whose attention takes no mask.
    """
    model = as_model(model)
    n = model.network.n_layers
    chosen = list(range(n)) if layers is None else [*layers]
    wrong = [one for one in chosen if not 0 <= one < n]
    if wrong:
        raise SurgeryError(f"There is no layer {wrong[0]!r}: {model.name} has {n} layers, 0 to {n - 1}.")
    chosen = sorted(set(chosen))
    if not chosen:
        raise SurgeryError("No layer is named; name at least one.")
    paths = [_attention(model, layer) for layer in chosen]

    def change(module: Any) -> None:
        for path in paths:
            attention = module.get_submodule(path)
            attention.__class__ = _seeing(type(attention))
            attention.is_causal = False

    child = make_custom(model, change, {"operation": "remove_causal_mask", "layers": chosen}, WHY)
    if child.model.network.causal:
        raise SurgeryError(f"The mask of {model.name} can't be taken off its attention.")
    return child


def _attention(model: LanguageModel, layer: int) -> str:
    """The path of the attention of a layer among the plain modules."""
    point = model.hook_points[f"blocks.{layer}.hook_attn_out"]
    inner = model.hook_points[f"blocks.{layer}.attn.hook_z"].module or ""
    for path in (point.module or "", inner.rpartition(".")[0]):
        if path and hasattr(model.network.module.get_submodule(path), "is_causal"):
            return path
    raise SurgeryError(f"The attention of {model.name} is not a module of its own; its mask can't be taken off.")


@functools.cache
def _seeing(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of an attention that masks no later token; all names of its modules stay."""
    if getattr(kind, "sees_ahead", False):
        return kind

    def forward(self: Any, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if any(kwargs.get(name) is not None for name in CACHES):
            raise SurgeryError("A model without the causal mask labels whole texts; it can't write with a cache.")
        wide = None if attention_mask is None else both_ways(attention_mask)
        return kind.forward(self, *args, attention_mask=wide, **kwargs)

    return type(f"{kind.__name__}SeeingAhead", (kind,), {"forward": forward, "sees_ahead": True})


def both_ways(mask: Tensor) -> Tensor:
    """A causal mask made symmetric, with padding still masked.

    Args:
        mask: `[batch, 1, pos, pos]`, bool where True is attended to, or numbers to be added, 0 where it is attended to.
            A token that is no padding attends to itself.
    """
    seen = mask if mask.dtype == torch.bool else mask == 0
    real = seen.diagonal(dim1=-2, dim2=-1)[..., None, :]  # [batch, 1, 1, pos]
    wide = (seen | seen.transpose(-2, -1)) & real
    if mask.dtype == torch.bool:
        return wide
    return torch.zeros_like(mask).masked_fill(~wide, torch.finfo(mask.dtype).min)


def _run(model: LanguageModel, *, layers: Sequence[int], **_: Any) -> CustomChild:
    return remove_causal_mask(model, layers or None)


register(
    Operation(
        "remove_causal_mask",
        "Remove the causal mask",
        "Lets layers attend to later tokens, for labelling; such a model can't write or be saved.",
        (Argument("layers", "Layers", (), "layers", help="Counted from 0; none for all."),),
        _run,
        neutral="no layers stand for all of them",
    )
)
