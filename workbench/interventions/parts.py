"""Parts of a model larger than a neuron: its layers and sublayers, and the hook points where they write."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workbench.model.edits import Edit, EditError
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.plan import Plan

PARTS = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
"""The sublayers of a layer, and where they write."""


def writers(model: LanguageModel) -> list[str]:
    """Hook points of all that writes into the residual stream: embeddings, attention and MLP of each layer."""
    embeddings = [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_points]
    layers = range(model.network.n_layers)
    return [*embeddings, *(f"blocks.{layer}.{name}" for layer in layers for name in PARTS.values())]


FIRST = -1
"""The step of the embeddings: from nothing to what enters the first layer."""
_apart: WeakKeyDictionary[LanguageModel, dict[int, float]] = WeakKeyDictionary()


def check_writers(model: LanguageModel, steps: Iterable[int]) -> None:
    """Refuse a model whose residual stream is not the sum of what its writers write, each times a factor.

    One short pass measures it, at the first use.

    Args:
        model: the model.
        steps: layers, or `FIRST` for the embeddings.

    Raises:
        EditError: what the writers of a step write does not sum to what the stream gains there.
    """
    if model not in _apart:
        _apart[model] = _measure_sums(model)
    for step in steps:
        apart = _apart[model][step]
        if not apart <= 1:
            who = "the embeddings write" if step == FIRST else f"attention and MLP of layer {step} write"
            raise EditError(
                f"In {model.name} what {who} does not sum to what the residual stream gains there, so a change of it "
                "is not the change of the stream that is meant; use hook points of the stream itself."
            )


def _measure_sums(model: LanguageModel) -> dict[int, float]:
    """How far each step is from a sum of its writers, in units of what rounding explains."""
    layers = range(model.network.n_layers)
    pre, post = ([f"blocks.{n}.hook_resid_{side}" for n in layers] for side in ("pre", "post"))
    steps = {n: [f"blocks.{n}.{name}" for name in PARTS.values()] for n in layers}
    steps[FIRST] = [name for name in writers(model) if not name.startswith("blocks.")]
    names = [*pre, *post, *(name for some in steps.values() for name in some)]
    if any(name not in model.hook_points for name in names):
        return dict.fromkeys(steps, float("inf"))
    tokens = torch.arange(1, 8, device=model.device)[None] % model.network.vocab_size
    with uninterrupted(), torch.inference_mode():
        seen = {name: value.cpu().double().flatten() for name, value in model.capture(tokens, names).items()}
    rounding = 16 * torch.finfo(model.network.module.dtype).eps
    apart = {}
    for step, some in steps.items():
        after = seen[pre[0] if step == FIRST else post[step]]
        gained = after if step == FIRST else after - seen[pre[step]]
        apart[step] = _distance(
            gained, torch.stack([seen[name] for name in some], 1), rounding * float(after.abs().max())
        )
    return apart


def _distance(gained: Tensor, parts: Tensor, rounding: float) -> float:
    """The distance of `gained` `[n]` from the nearest sum of multiples of `parts` `[n, k]`, over what is allowed."""
    factors = torch.linalg.lstsq(parts, gained[:, None], driver="gelsd").solution
    return float((parts @ factors - gained[:, None]).abs().max()) / (
        1e-3 * float(gained.abs().max()) + rounding + 1e-30
    )


def check_layer(model: LanguageModel, layer: int) -> None:
    """Raise `EditError` unless the model has a layer of this number."""
    number = model.network.n_layers
    if not 0 <= layer < number:
        raise EditError(f"There is no layer {layer!r}: {model.name} has {number} layers, 0 to {number - 1}.")


def silence(model: LanguageModel, plan: Plan, layer: int, part: str, source: str) -> Edit:
    """An edit that sets what a sublayer writes to zero; raises `EditError` where that holds more than it writes."""
    check_writers(model, [layer])
    point = model.hook_points[f"blocks.{layer}.{PARTS[part]}"]
    plan.close(point.key)
    return Edit(point.name, torch.zeros_like, source=source)
