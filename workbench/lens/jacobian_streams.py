"""Streams behind each layer that gradients can be taken of, in the plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workbench.model.edits import Edit, Group, Run
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Stream:
    """The stream behind a layer, `[rows, pos, d_model]`."""

    value: Tensor
    """What the layer returns."""
    leaf: Tensor
    """What the layers behind it read: the same, or a leaf where gradients end."""


def streams_of(model: LanguageModel, tokens: Tensor, *, apart: bool = False) -> dict[int, Stream]:
    """The stream behind each layer, in one pass; call it where gradients are taken.

    Args:
        model: the model.
        tokens: `[rows, pos]`.
        apart: whether gradients end at each layer; otherwise they reach back to the first one.
    """
    streams: dict[int, Stream] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def kept(x: Tensor) -> Tensor:
            leaf = x.detach().requires_grad_() if apart or layer == 0 else x
            streams[layer] = Stream(x, leaf)
            return leaf

        return kept

    last = f"blocks.{model.network.n_layers - 1}.hook_resid_post"
    edits = [Edit(f"blocks.{layer}.hook_resid_post", keep(layer)) for layer in range(model.network.n_layers)]
    ready = [*model.bind(()), *model.network.prepare(edits)]
    run = Run([Group(ready)], watch={model.hook_points[last].key: lambda _: None})
    model.network.capture(tokens, [last], run)
    return streams
