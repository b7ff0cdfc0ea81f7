"""Layers that see ahead: the causal mask is taken off some layers, for tasks in which every token gets a label.

Dukić and Šnajder, "Looking Right is Sometimes Right" (2024), arXiv 2401.14556: decoders label sequences better, after
fine-tuning, when groups of their layers attend to what follows too; which groups, depends on the task. `labelling.py`
has such tasks, and `heal` trains on them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child, SurgeryError
from workbench.surgery.inputs import as_model
from workbench.surgery.operations.custom import CustomChild, make_custom
from workbench.surgery.registry import Argument, Operation, register

WHY = (
    "Plain transformers masks what follows in every layer, so a model of which some layers see ahead can't be saved as "
    "an ordinary checkpoint."
)


CACHES = ("past_key_values", "past_key_value", "layer_past")
"""What attention modules call the cache of keys and values."""


def remove_causal_mask(model: LanguageModel | Child, layers: Sequence[int] | None = None) -> CustomChild:
    """The model with the causal mask taken off some layers' attention.

    Padding stays hidden, and a sliding window reaches as far to the right as to the left. Such a model reads and
    labels; it does not write with a key-value cache, since what it has read would have to change with each new token.

    Args:
        model: left as it is.
        layers: which ones; None for all.

    Raises:
        SurgeryError: no layer, one that does not exist, or an architecture whose attention takes no mask.
    """
    _given, model = model, as_model(model)
    n = model.network.n_layers
    if isinstance(layers, str) or not isinstance(layers, Iterable | None):
        raise SurgeryError(f"layers is a list of layers, such as [0, 1], not {layers!r}.")
    chosen = list(range(n)) if layers is None else [*layers]
    wrong = [one for one in chosen if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < n]
    if wrong:
        raise SurgeryError(f"There is no layer {wrong[0]!r}: {model.name} has {n} layers, 0 to {n - 1}.")
    chosen = sorted(set(chosen))
    if not chosen:
        raise SurgeryError("No layer is named; name at least one that shall see ahead.")
    paths = [_attention(model, layer) for layer in chosen]

    def change(module: Any) -> None:
        for path in paths:
            attention = module.get_submodule(path)
            attention.__class__ = _seeing(type(attention))
            attention.is_causal = False

    child = make_custom(model, change, {"operation": "remove_causal_mask", "layers": chosen}, WHY)
    tokens = torch.tensor([[1, 2, 3], [1, 2, 4]])
    with torch.inference_mode():
        first, second = child.model.network.run(tokens)[:, 0]
    if torch.equal(first, second):
        raise SurgeryError(f"The mask of {model.name} can't be taken off its attention.")
    return child


def _attention(model: LanguageModel, layer: int) -> str:
    """Where the attention of a layer is among the plain modules."""
    point = model.hook_points[f"blocks.{layer}.hook_attn_out"]
    inner = model.hook_points[f"blocks.{layer}.attn.hook_z"].module or ""
    for path in (point.module or "", inner.rpartition(".")[0]):
        if path and hasattr(model.network.module.get_submodule(path), "is_causal"):
            return path
    raise SurgeryError(f"The attention of {model.name} is not a module of its own; its mask can't be taken off.")


@functools.cache
def _seeing(kind: type[nn.Module]) -> type[nn.Module]:
    """The same attention, with what follows unmasked; only the class is another, all names stay."""
    if getattr(kind, "sees_ahead", False):
        return kind

    def forward(self: Any, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if any(kwargs.get(name) is not None for name in CACHES):
            raise SurgeryError("A model of which layers see ahead labels whole texts; it can't write with a cache.")
        wide = None if attention_mask is None else both_ways(attention_mask)
        return kind.forward(self, *args, attention_mask=wide, **kwargs)

    return type(f"{kind.__name__}SeeingAhead", (kind,), {"forward": forward, "sees_ahead": True})


def both_ways(mask: Tensor) -> Tensor:
    """A causal mask made symmetric, with padding still hidden.

    Args:
        mask: `[batch, 1, pos, pos]`, bool where True is seen, or numbers to be added, 0 where it is seen. A token that
            is no padding sees itself.
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
        "Take off the causal mask",
        "Lets layers attend to what follows, for labelling; such a model can't write or be saved.",
        (Argument("layers", "Layers", (), "layers", help="Counted from 0; none for all."),),
        _run,
    )
)
