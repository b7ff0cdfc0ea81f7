"""The effect of each head and MLP on a task by brute force: ablation and activation patching, one component at a time.

Ablation replaces a component's output by zero, a mean or its output on another prompt; activation patching replaces it
by its output on the corrupted prompt (Wang et al. 2022, arXiv 2211.00593; Zhang, Nanda 2023, arXiv 2309.16042).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.circuits.patching_runs import Variant, capture_all, head_point, last_logits, mlp_points, run_variants
from workbench.circuits.tasks import EncodedTask, Task, encode_task, log_odds
from workbench.core.checks import Integer, checked
from workbench.core.display import Tabular, cells
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.model.edits import Edit
from workbench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from workbench.figures.common import Figure

Method = Literal["patch", "mean", "zero", "resample"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Replacements of a component's output: its output on the corrupted prompt; its mean over the corrupted prompts,
position by position; zero; its output on another positive prompt."""


@dataclass(frozen=True)
class PatchingResult(Tabular):
    """The loss of `log P(right) - log P(wrong)`, in nats, where a component is changed; below 0 for a gain."""

    method: str
    heads: Tensor
    """`[layer, head]`: mean over the prompts."""
    mlps: Tensor
    """`[layer]`: mean over the prompts; empty where MLPs were not changed."""
    plain: float
    """`log P(right) - log P(wrong)` of the unchanged model, mean over the prompts."""
    examples: int
    seconds: float

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each head, and one without a head for each MLP."""
        yield from cells(("layer", "head"), loss=self.heads)
        yield from ({"layer": layer, "head": None, "loss": loss} for layer, loss in enumerate(self.mlps.tolist()))

    def figure(self) -> Figure:
        """The losses of heads as a map."""
        from workbench.figures.circuits import head_maps

        return head_maps({self.method: self.heads.tolist()})

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


@checked(TaskError)
def patch_components(
    model: LanguageModel,
    task: Task,
    method: Method = "patch",
    *,
    mlps: bool = True,
    seed: Annotated[Integer, Ge(0), Lt(2**63)] = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PatchingResult:
    """The effect of every head and MLP on a task, each changed alone at all positions.

    Many components run in one batch, each in its own rows. Interventions and splices in force around the call are set
    aside.

    Args:
        model: the model.
        task: the prompts.
        method: the replacement of a component's output, one of `METHODS`.
        mlps: whether MLPs are changed too.
        seed: of the choice of the other prompt for "resample".
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each batch; once it returns True, the work stops with a `TaskError`.

    Raises:
        TaskError: an unknown method, a task that does not fit the model or has a single prompt for "resample", or work
            that was cancelled.
    """
    began = time.perf_counter()
    encoded = encode_task(model, task)
    layers = range(model.network.n_layers)
    points = [head_point(model, layer) for layer in layers]
    others = mlp_points(model) if mlps else []
    values = replacement_values(model, encoded, [*points, *others], method, seed)
    variants = [
        head_variant(point, head, values[point]) for point in points for head in range(model.network.n_heads)
    ] + [_whole(point, values[point]) for point in others]
    plain = log_odds(last_logits(model, encoded.tokens), encoded)  # [n]
    lost = torch.zeros(len(variants), dtype=torch.float64)
    done = 0
    for chosen, rows, logits in run_variants(model, encoded.tokens, variants):
        part = encoded.rows(rows)
        changed = torch.stack([log_odds(one, part) for one in logits])  # [variants, prompts]
        lost[chosen] += in_float64(plain[rows] - changed).sum(1).cpu()
        done += changed.numel()
        if progress:
            share = done / (len(variants) * len(task))
            progress(share, f"{method}: {done:,} of {len(variants) * len(task):,} runs")
        if cancel is not None and cancel():
            raise TaskError("The work was cancelled before every component was changed.")
    lost = (lost / len(task)).float()
    heads = lost[: len(points) * model.network.n_heads].view(len(points), -1)
    return PatchingResult(
        method, heads, lost[heads.numel() :], float(in_float64(plain).mean()), len(task), time.perf_counter() - began
    )


@checked(TaskError)
def keep_heads(
    model: LanguageModel, task: Task, heads: Sequence[tuple[Integer, Integer]], *, others: bool = True
) -> list[Edit]:
    """Edits that mean-ablate all heads but some: their outputs become their means over the corrupted prompts.

    Args:
        model: the model.
        task: the prompts that the edits are for.
        heads: `(layer, head)` of a circuit.
        others: True to ablate all heads but these, False to ablate these.

    Raises:
        TaskError: a head that the model lacks, or a task that does not fit it.
    """
    network = model.network
    kept = torch.zeros(network.n_layers, network.n_heads, dtype=torch.bool, device=model.device)
    for layer, head in heads:
        if not (0 <= layer < network.n_layers and 0 <= head < network.n_heads):
            raise TaskError(f"There is no head {head} in layer {layer}: {model.name} has {tuple(kept.shape)} of them.")
        kept[layer, head] = True
    ablated = ~kept if others else kept
    points = {head_point(model, layer): row for layer, row in enumerate(ablated) if bool(row.any())}
    means = replacement_values(model, encode_task(model, task), list(points), "mean")

    def ablate(point: str) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(points[point][:, None], means[point][:1].to(x), x)

    return [Edit(point, ablate(point)) for point in points]


def replacement_values(
    model: LanguageModel, encoded: EncodedTask, points: Sequence[str], method: Method, seed: int = 0
) -> dict[str, Tensor]:
    """The replacements of the tensors at some hook points, `[n, pos, *shape]` each."""
    if not points:
        return {}
    if method == "resample":
        activations = capture_all(model, encoded.tokens, points)
        chosen = other_prompts(encoded.tokens, seed)
        return {name: value[chosen] for name, value in activations.items()}
    activations = capture_all(model, encoded.corrupted, points)
    if method == "zero":
        return {name: torch.zeros_like(value) for name, value in activations.items()}
    if method == "mean":
        return {name: value.mean(0, keepdim=True).expand_as(value) for name, value in activations.items()}
    return activations


def other_prompts(tokens: Tensor, seed: int) -> Tensor:
    """For each prompt `[n, pos]` the row of another one, drawn at random: `[n]`.

    Raises:
        TaskError: fewer than two prompts, or two equal ones.
    """
    count = len(tokens)
    if len(tokens.unique(dim=0)) < count or count < 2:
        raise TaskError(
            "Resampling takes a component's output on another prompt; give at least two prompts, all different."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chosen = torch.empty(count, dtype=torch.long)
    chosen[order] = order.roll(1)
    return chosen


def head_variant(point: str, head: int, values: Tensor) -> Variant:
    """A variant that replaces one head's output by `values[:, :, head]`; values: `[n, pos, head, d_head]`."""

    def change(rows: slice) -> Callable[[Tensor], Tensor]:
        def put(x: Tensor) -> Tensor:
            new = x.clone()
            new[:, :, head] = values[rows, :, head]
            return new

        return put

    return Variant(point, change)


def _whole(point: str, values: Tensor) -> Variant:
    """A variant that replaces the tensor by `values` `[n, pos, *shape]`."""
    return Variant(point, lambda rows: values[rows].to)  # in the type of the tensor that it replaces
