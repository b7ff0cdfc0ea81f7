"""Attribution patching and edge attribution patching: estimates of patching from one backward pass.

Attribution patching (Nanda 2023; Syed, Rager, Conmy 2023, arXiv 2310.10348) is the effect of a change to first order:
the gradient times the difference between the clean and the corrupted activation. Edge attribution patching (EAP, the
same paper) applies this to the part of a head's input that another head writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.circuits.patching import PatchingResult
from workbench.circuits.patching_runs import (
    attention_input_points,
    capture_all,
    head_matrices,
    head_path,
    head_point,
    mlp_points,
)
from workbench.circuits.tasks import EncodedTask, Task, encode_task, log_odds
from workbench.core.checks import checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.model.edits import Edit
from workbench.model.grad_mode import lasting, taking_gradients
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

TOKENS = 384
"""Tokens in a batch: the backward pass keeps a few MB for each."""


@checked(TaskError)
@lasting
def attribution_patching(
    model: LanguageModel,
    task: Task,
    *,
    mlps: bool = True,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PatchingResult:
    """Attribution patching: `patch_components` with "patch" to first order; arguments and errors as there."""
    began = time.perf_counter()
    encoded = encode_task(model, task)
    layers = range(model.network.n_layers)
    points = [head_point(model, layer) for layer in layers]
    others = mlp_points(model) if mlps else []
    corrupted = capture_all(model, encoded.corrupted, [*points, *others])
    heads = torch.zeros(len(points), model.network.n_heads, dtype=torch.float64)
    of_mlps = torch.zeros(len(others), dtype=torch.float64)
    plain = 0.0
    for rows in _batches(encoded, progress, cancel):
        with uninterrupted(), taking_gradients():
            run = _run_with_leaves(model, encoded.rows(rows), [*points, *others])
            gradients = torch.autograd.grad(run.score.sum(), [run.leaves[name] for name in (*points, *others)])
        plain += float(in_float64(run.score.detach()).sum())
        for place, (name, gradient) in enumerate(zip((*points, *others), gradients, strict=True)):
            clean = run.activations[name].detach().to(model.device)
            lost = (clean - corrupted[name][rows]) * gradient.to(model.device)  # [rows, pos, *shape]
            if place < len(points):
                heads[place] += in_float64(lost).sum((0, 1, 3)).cpu()
            else:
                of_mlps[place - len(points)] += in_float64(lost).sum().cpu()
    count = len(task)
    return PatchingResult(
        method="attribution",
        heads=(heads / count).float(),
        mlps=(of_mlps / count).float(),
        plain=plain / count,
        examples=count,
        seconds=time.perf_counter() - began,
    )


@checked(TaskError)
@lasting
def edge_attribution_patching(
    model: LanguageModel,
    task: Task,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Tensor:
    """Edge attribution patching between heads: `patch_edges` to first order.

    Returns:
        `[layer, head, layer, head]`: from the first head to the second, in a later layer; 0 for all other pairs. In
        nats of `log P(right) - log P(wrong)`, mean over the prompts.

    Raises:
        TaskError: a task that does not fit the model, or work that was cancelled.
    """
    encoded = encode_task(model, task)
    layers, n_heads = model.network.n_layers, model.network.n_heads
    points = [head_point(model, layer) for layer in range(layers)]
    inputs = attention_input_points(model)
    corrupted = capture_all(model, encoded.corrupted, points)
    edges = torch.zeros(layers, n_heads, layers, n_heads)
    for rows in _batches(encoded, progress, cancel):
        with uninterrupted(), taking_gradients():
            run = _run_with_leaves(model, encoded.rows(rows), [*points, *inputs])
            gradients = torch.autograd.grad(run.score.sum(), [run.leaves[name] for name in points], retain_graph=True)
            written = [
                _written(model, layer, run.activations[point].detach().to(model.device), corrupted[point][rows])
                for layer, point in enumerate(points)
            ]  # [head, rows * pos * d_model] each
            for layer in range(1, layers):
                wanted = torch.stack([_pulled_back(run, points[layer], inputs[layer], gradients[layer], head)
                                      for head in range(n_heads)])  # [head, rows * pos * d_model]  # fmt: skip
                for source in range(layer):
                    edges[source, :, layer] += (written[source] @ wanted.T).cpu()
    return edges / len(task)


@dataclass
class _RunWithLeaves:
    """A run in which leaves of zeros are added at hook points, so that gradients can be taken by them."""

    score: Tensor
    """`log P(right) - log P(wrong)`, `[rows]`."""
    leaves: dict[str, Tensor]
    """By hook point, in float32."""
    activations: dict[str, Tensor]
    """By hook point, with the leaves added."""


def _run_with_leaves(model: LanguageModel, encoded: EncodedTask, points: list[str]) -> _RunWithLeaves:
    batch, length = encoded.tokens.shape
    leaves: dict[str, Tensor] = {}
    activations: dict[str, Tensor] = {}
    for name in points:
        shape = batch, length, *model.hook_points[name].shape
        leaves[name] = torch.zeros(shape, device=model.device, requires_grad=True)

    def add_leaf(name: str) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            activations[name] = x + leaves[name].to(x.device, x.dtype)
            return activations[name]

        return change

    edits = [*model.bind([]), *(Edit(name, add_leaf(name)) for name in points)]
    logits = model.run(encoded.tokens, edits, last=1)[:, -1].float()
    return _RunWithLeaves(log_odds(logits, encoded), leaves, activations)


def _pulled_back(run: _RunWithLeaves, point: str, read: str, gradient: Tensor, head: int) -> Tensor:
    """One head's part of the gradient at its layer's input, `[rows * pos * d_model]`."""
    written = run.activations[point]
    only = torch.zeros_like(written)
    only[:, :, head] = gradient[:, :, head]
    (pulled,) = torch.autograd.grad(written, run.leaves[read], only, retain_graph=True)
    return pulled.flatten()


def _written(model: LanguageModel, layer: int, clean: Tensor, corrupted: Tensor) -> Tensor:
    """What the stream loses, to first order, where each head's output is the corrupted prompt's.

    Args:
        clean: `[rows, pos, head, d_head]`.
        corrupted: likewise.

    Returns:
        `[head, rows * pos * d_model]`.
    """
    path = head_path(model, layer)
    change = torch.einsum("bphd,hdm->hbpm", (clean - corrupted).float(), head_matrices(model, layer))
    return path.slope(clean.flatten(2), change).flatten(1)


def _batches(encoded: EncodedTask, progress: Progress | None, cancel: Callable[[], bool] | None) -> Iterator[slice]:
    """Slices of the prompts, each of at most `TOKENS` tokens."""
    count, at_once = len(encoded.tokens), max(1, TOKENS // encoded.tokens.shape[1])
    for start in range(0, count, at_once):
        yield slice(start, min(start + at_once, count))
        if progress:
            progress(
                min(start + at_once, count) / count, f"gradients: {min(start + at_once, count)} of {count} prompts"
            )
        if cancel is not None and cancel():
            raise TaskError("The work was cancelled before all gradients were taken.")
