"""Mean gradients of the end of the stream by autograd, on any model that has them: the way the source states.

The text is repeated, one row for each coordinate of the last stream; a backward pass takes so many coordinates as there
are rows, at all target positions at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.lens.jacobian_streams import streams_of
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel

VALUES = 1 << 27
"""Values that the rows of one backward pass keep, about: 512 MiB in float32."""
KEPT = 32
"""Values kept of each position and layer, in widths of the stream, beside the attention's."""


def jacobians(model: LanguageModel, tokens: Tensor, first: int, each: Callable[[], None]) -> Tensor:
    """The mean over source positions of the summed effects on all target positions, `[layers - 1, d_model, d_model]`.

    Args:
        model: in float32; causal.
        tokens: `[1, pos]`; each position from `first` on is a source and a target.
        first: the first position that counts.
        each: called before each pass.
    """
    layers, width, pos = model.network.n_layers, model.network.d_model, tokens.shape[1]
    kept = layers * pos * (KEPT * width + model.network.n_heads * pos)
    rows = max(1, min(width, VALUES // kept))
    found = torch.empty(layers - 1, width, width)
    each()
    with taking_gradients():
        streams = streams_of(model, tokens.expand(rows, -1))
        target = streams[layers - 1].value
        sources = [streams[layer].leaf for layer in range(layers - 1)]
        for start in range(0, width, rows):
            each()
            count = min(rows, width - start)
            upon = torch.zeros_like(target)
            upon[torch.arange(count), first:, torch.arange(start, start + count)] = 1.0
            gradients = torch.autograd.grad(target, sources, upon, retain_graph=start + rows < width)
            for layer, gradient in enumerate(gradients):
                found[layer, start : start + count] = gradient[:count, first:].float().mean(1)
    return found
