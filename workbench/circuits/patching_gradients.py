"""Fast rivals of patching, from one backward pass: attribution patching, and the same for edges.

Attribution patching (Nanda 2023; Syed, Rager, Conmy 2023, arXiv 2310.10348) takes the effect of a change to first
order: the gradient times the difference between the clean and the corrupted activation. Edge attribution patching (EAP,
the same paper) does so for the part of a head's input that another head writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.patching import PatchingResult
from workbench.circuits.patching_runs import capture_all, head_point, mlp_point, output_weights
from workbench.circuits.tasks import Encoded, Task, TaskError, encode, log_odds
from workbench.core.progress import Progress
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel, uninterrupted

TOKENS = 384
"""Tokens that run at once: what is kept for the backward pass is a few MB for each."""


def attribution_patching(
    model: LanguageModel,
    task: Task,
    *,
    mlps: bool = True,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PatchingResult:
    """Attribution patching: `patch_components` with "patch" to first order; settings and errors as there."""
    began = time.perf_counter()
    encoded = encode(model, task)
    layers = range(model.network.n_layers)
    points = [head_point(model, layer) for layer in layers]
    others = [mlp_point(layer) for layer in layers] if mlps else []
    corrupted = capture_all(model, encoded.corrupted, [*points, *others])
    heads = torch.zeros(len(points), model.network.n_heads, dtype=torch.float64)
    of_mlps = torch.zeros(len(others), dtype=torch.float64)
    plain = 0.0
    for rows in _some(encoded, progress, cancel):
        with uninterrupted(), torch.enable_grad():
            nudged = _nudged(model, encoded.rows(rows), [*points, *others])
            slopes = torch.autograd.grad(nudged.score.sum(), [nudged.added[name] for name in (*points, *others)])
        plain += float(nudged.score.detach().double().sum())
        for place, (name, slope) in enumerate(zip((*points, *others), slopes, strict=True)):
            gone = (nudged.seen[name].detach() - corrupted[name][rows]) * slope  # [rows, pos, *shape]
            if place < len(points):
                heads[place] += gone.double().sum((0, 1, 3))
            else:
                of_mlps[place - len(points)] += gone.double().sum()
    count = len(task)
    took = time.perf_counter() - began
    return PatchingResult("attribution", (heads / count).float(), (of_mlps / count).float(), plain / count, count, took)


def attribute_edges(
    model: LanguageModel,
    task: Task,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """Edge attribution patching between heads, to first order what `patch_edges` measures.

    Returns:
        `[layer, head, layer, head]`: from the first head to the second, a later layer's; 0 for all other pairs. In nats
        of `log P(right) - log P(wrong)`, mean over the prompts.
    """
    encoded = encode(model, task)
    layers, n_heads = model.network.n_layers, model.network.n_heads
    points = [head_point(model, layer) for layer in range(layers)]
    inputs = [input_point(layer) for layer in range(layers)]
    corrupted = capture_all(model, encoded.corrupted, points)
    edges = torch.zeros(layers, n_heads, layers, n_heads)
    for rows in _some(encoded, progress, cancel):
        with uninterrupted(), torch.enable_grad():
            nudged = _nudged(model, encoded.rows(rows), [*points, *inputs])
            slopes = torch.autograd.grad(nudged.score.sum(), [nudged.added[name] for name in points], retain_graph=True)
            written = [
                _written(model, layer, nudged.seen[point].detach() - corrupted[point][rows])
                for layer, point in enumerate(points)
            ]  # [head, rows * pos * d_model] each
            for layer in range(1, layers):
                wanted = torch.stack([_pulled(nudged, points[layer], inputs[layer], slopes[layer], head)
                                      for head in range(n_heads)])  # [head, rows * pos * d_model]  # fmt: skip
                for source in range(layer):
                    edges[source, :, layer] += written[source] @ wanted.T
    return edges / len(task)


def input_point(layer: int) -> str:
    """What a layer's attention reads, before its norm: `[batch, pos, d_model]`; the residual stream passes it by."""
    return f"blocks.{layer}.ln1.hook_in"


@dataclass
class _Nudged:
    """A run in which zeros were added, by which gradients are taken."""

    score: Tensor
    """`[rows]`."""
    added: dict[str, Tensor]
    seen: dict[str, Tensor]
    """The tensors at the same hook points."""


def _nudged(model: LanguageModel, encoded: Encoded, points: list[str]) -> _Nudged:
    batch, length = encoded.tokens.shape
    added: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for name in points:
        added[name] = torch.zeros(batch, length, *model.hook_points[name].shape, requires_grad=True)

    def nudge(name: str) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            seen[name] = x + added[name]
            return seen[name]

        return change

    edits = [*model.bind([]), *(Edit(name, nudge(name)) for name in points)]
    logits = model.run(encoded.tokens, edits, last=1)[:, -1].float()
    return _Nudged(log_odds(logits, encoded), added, seen)


def _pulled(nudged: _Nudged, point: str, read: str, slope: Tensor, head: int) -> Tensor:
    """The gradient by a layer's input of what one of its heads does, `[rows * pos * d_model]`."""
    only = torch.zeros_like(slope)
    only[:, :, head] = slope[:, :, head]
    (found,) = torch.autograd.grad(nudged.seen[point], nudged.added[read], only, retain_graph=True)
    return found.flatten()


def _written(model: LanguageModel, layer: int, z: Tensor) -> Tensor:
    """What heads of the outputs z `[rows, pos, head, d_head]` write: `[head, rows * pos * d_model]`."""
    return torch.einsum("bphd,hdm->hbpm", z, output_weights(model, layer)).flatten(1)


def _some(encoded: Encoded, progress: Progress | None, cancel: Callable[[], bool] | None) -> Any:
    """Slices of the prompts, so many at a time as may run at once."""
    count, at_once = len(encoded.tokens), max(1, TOKENS // encoded.tokens.shape[1])
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))
        if progress:
            progress(
                min(start + at_once, count) / count, f"gradients: {min(start + at_once, count)} of {count} prompts"
            )
        if cancel is not None and cancel():
            raise TaskError("The work was given up before all gradients had been taken.")
