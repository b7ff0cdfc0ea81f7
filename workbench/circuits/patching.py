"""What each head and MLP does for a task, by brute force: change it alone, and see how much is lost.

Ablation puts zero, a mean or another prompt's value in a part's place; activation patching puts there what the part
does on the corrupted prompt (Wang et al. 2022, arXiv 2211.00593; Zhang, Nanda 2023, arXiv 2309.16042).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.patching_runs import Variant, capture_all, head_point, last_logits, mlp_point, run_variants
from workbench.circuits.tasks import Encoded, Task, TaskError, encode, log_odds
from workbench.core.progress import Progress
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel

METHODS = {
    "patch": "what it does on the corrupted prompt",
    "mean": "its mean over the corrupted prompts, position by position",
    "zero": "zero",
    "resample": "what it does on another positive prompt",
}
"""What is put in a part's place."""


@dataclass(frozen=True)
class PatchingResult:
    """How much of `log P(right) - log P(wrong)`, in nats, is lost where a part is changed; below 0 it is won."""

    method: str
    heads: Tensor
    """`[layer, head]`: mean over the prompts."""
    mlps: Tensor
    """`[layer]`; empty where they were not asked for."""
    plain: float
    """Of the unchanged model, mean over the prompts."""
    examples: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "method": self.method,
            "heads": self.heads.tolist(),
            "mlps": self.mlps.tolist(),
            "plain": self.plain,
            "examples": self.examples,
            "seconds": self.seconds,
        }


def patch_components(
    model: LanguageModel,
    task: Task,
    method: str = "patch",
    *,
    mlps: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PatchingResult:
    """The effect of every head and MLP, each changed alone at all positions, on every prompt of a task.

    Interventions and splices in force around the call are set aside. Many parts run at once, as rows of one batch.

    Args:
        model: the model.
        task: the prompts.
        method: what is put in a part's place, one of `METHODS`.
        mlps: whether MLPs are changed too.
        seed: which other prompt "resample" takes; never the same one.
        progress: told the share done.
        cancel: asked after each batch; once it says True, the work is given up.

    Raises:
        TaskError: an unknown method, a task that does not fit the model or has a single prompt for "resample", or work
            that was given up.
    """
    began = time.perf_counter()
    encoded = encode(model, task)
    layers = range(model.network.n_layers)
    points = [head_point(model, layer) for layer in layers]
    others = [mlp_point(layer) for layer in layers] if mlps else []
    values = replacements(model, encoded, [*points, *others], method, seed)
    variants = [
        head_variant(point, head, values[point]) for point in points for head in range(model.network.n_heads)
    ] + [_whole(point, values[point]) for point in others]
    plain = log_odds(last_logits(model, encoded.tokens), encoded)  # [n]
    lost = torch.zeros(len(variants), dtype=torch.float64)
    done = 0
    for chosen, rows, logits in run_variants(model, encoded.tokens, variants):
        part = encoded.rows(rows)
        changed = torch.stack([log_odds(one, part) for one in logits])  # [variants, prompts]
        lost[chosen] += (plain[rows] - changed).double().sum(1)
        done += changed.numel()
        if progress:
            share = done / (len(variants) * len(task))
            progress(share, f"{method}: {done:,} of {len(variants) * len(task):,} runs")
        if cancel is not None and cancel():
            raise TaskError("The work was given up before every part had been changed.")
    lost = (lost / len(task)).float()
    heads = lost[: len(points) * model.network.n_heads].view(len(points), -1)
    return PatchingResult(
        method, heads, lost[heads.numel() :], float(plain.double().mean()), len(task), time.perf_counter() - began
    )


def keep_heads(
    model: LanguageModel, task: Task, heads: Sequence[tuple[int, int]], *, others: bool = True
) -> list[Edit]:
    """Edits under which only some heads do what they do: the rest has its mean over the corrupted prompts.

    Args:
        model: the model.
        task: the prompts that the edits are for.
        heads: `(layer, head)` of a circuit.
        others: True to take away all heads but these, False to take away these.

    Raises:
        TaskError: a head that the model lacks, or a task that does not fit it.
    """
    network = model.network
    kept = torch.zeros(network.n_layers, network.n_heads, dtype=torch.bool)
    for layer, head in heads:
        if not (0 <= layer < network.n_layers and 0 <= head < network.n_heads):
            raise TaskError(f"There is no head {head} in layer {layer}: {model.name} has {tuple(kept.shape)} of them.")
        kept[layer, head] = True
    gone = ~kept if others else kept
    points = {head_point(model, layer): row for layer, row in enumerate(gone) if bool(row.any())}
    means = replacements(model, encode(model, task), list(points), "mean")

    def away(point: str) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(points[point][:, None], means[point][:1].to(x), x)

    return [Edit(point, away(point)) for point in points]


def replacements(
    model: LanguageModel, encoded: Encoded, points: Sequence[str], method: str, seed: int = 0
) -> dict[str, Tensor]:
    """What is put in the place of the tensors at some hook points: `[n, pos, *shape]` each."""
    if method not in METHODS:
        raise TaskError(f"A part is changed by one of {', '.join(METHODS)}, not {method!r}.")
    if not points:
        return {}
    if method == "resample":
        found = capture_all(model, encoded.tokens, points)
        chosen = donors(encoded.tokens, seed)
        return {name: value[chosen] for name, value in found.items()}
    found = capture_all(model, encoded.corrupted, points)
    if method == "zero":
        return {name: torch.zeros_like(value) for name, value in found.items()}
    if method == "mean":
        return {name: value.mean(0, keepdim=True).expand_as(value) for name, value in found.items()}
    return found


def donors(tokens: Tensor, seed: int) -> Tensor:
    """For each prompt another one, `[n]`, drawn by the seed; the prompts are in the order of `encode`.

    Raises:
        TaskError: there is no other prompt.
    """
    count = len(tokens)
    if len(tokens.unique(dim=0)) < count or count < 2:
        raise TaskError("Resampling takes what a part does on another prompt; give at least two, all different.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chosen = torch.empty(count, dtype=torch.long)
    chosen[order] = order.roll(1)
    return chosen


def head_variant(point: str, head: int, values: Tensor) -> Variant:
    """One head's output becomes `values[:, :, head]`; values: `[n, pos, head, d_head]`."""

    def change(rows: slice) -> Callable[[Tensor], Tensor]:
        def put(x: Tensor) -> Tensor:
            new = x.clone()
            new[:, :, head] = values[rows, :, head]
            return new

        return put

    return Variant(point, change)


def _whole(point: str, values: Tensor) -> Variant:
    """The tensor becomes `values` `[n, pos, *shape]`."""
    return Variant(point, lambda rows: values[rows].to)  # to the type of what it gets
