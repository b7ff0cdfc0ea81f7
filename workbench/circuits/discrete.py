"""Heads that matter for a task, found by the integer codes of their outputs, without a single backward pass.

O'Neill, Bui (2024), arXiv 2405.12522: a head that does something for a task has codes on the prompts of the task that
it never has on corrupted ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.discrete_sae import train_coder
from workbench.circuits.patching_runs import capture_all, head_point, output_weights
from workbench.circuits.tasks import TaskError, as_tokens
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class DiscreteCircuit:
    """What the codes of heads say about a task."""

    heads: Tensor
    """`[layer, head]`: how many codes occur on positive prompts and never on negative ones."""
    edges: Tensor
    """`[layer, head, layer, head]`: how many pairs of codes of a head and one of a later layer occur together on
    positive prompts and never on negative ones; 0 for pairs in one layer or downwards."""
    positive_codes: Tensor
    """`[n, layer, head]`; `features` stands for no active latent."""
    negative_codes: Tensor
    """`[n, layer, head]`."""
    losses: list[float]
    """Of every epoch."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, without the losses of all but the last epoch."""
        return {
            "heads": self.heads.tolist(),
            "edges": self.edges.tolist(),
            "positive_codes": self.positive_codes.tolist(),
            "negative_codes": self.negative_codes.tolist(),
            "loss": self.losses[-1] if self.losses else None,
            "seconds": self.seconds,
        }


def find_heads_discrete(
    model: LanguageModel, positives: Sequence[str] | Tensor, negatives: Sequence[str] | Tensor, **how: Any
) -> Tensor:
    """Scores of all heads, `[layer, head]`; settings and errors as in `find_circuit_discrete`."""
    return find_circuit_discrete(model, positives, negatives, **how).heads


def find_circuit_discrete(
    model: LanguageModel,
    positives: Sequence[str] | Tensor,
    negatives: Sequence[str] | Tensor,
    *,
    examples: int = 10,
    features: int = 200,
    l1: float = 0.02,
    lr: float = 1e-3,
    epochs: int = 500,
    centred: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> DiscreteCircuit:
    """Scores of all heads and edges by the codes of one small autoencoder.

    Each head's output in the residual stream, its mean over positions, is a row. One autoencoder learns the rows of
    some prompts of both kinds; then every prompt gives every head one code. The order of the prompts makes no
    difference. Interventions and splices in force around the call are set aside.

    Args:
        model: the model.
        positives: prompts of the task, as texts or token ids `[n, pos]`.
        negatives: corrupted prompts, of as many tokens.
        examples: prompts that are learned from, drawn from both kinds together; all of them if there are fewer.
        features: latents of the autoencoder.
        l1: weight of the sum of latents, mean over rows, against the mean squared error.
        lr: of Adam.
        epochs: steps, each on all rows.
        centred: take from each head's outputs their mean over all prompts first, so that codes are about what varies
            and not about what a head always writes; the paper does not.
        seed: of the choice of the prompts and of the first weights.
        progress: told the share done.
        cancel: asked after each epoch; once it says True, the work is given up.

    Raises:
        TaskError: one class is empty, prompts of unequal lengths, a setting that can't be used, or work given up.
    """
    began = time.perf_counter()
    for name, value in (("examples", examples), ("features", features), ("epochs", epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TaskError(f"{name} is a whole number from 1, not {value!r}.")
    for name, value, least in (("l1", l1, 0.0), ("lr", lr, 1e-12)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise TaskError(f"{name} is a finite number above 0 (l1 may be 0), not {value!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise TaskError(f"seed is a whole number from 0, not {seed!r}.")
    outputs, count = head_outputs(model, positives, negatives)  # [n, layer, head, d_model]
    if centred:
        outputs = outputs - outputs.mean(0)
    chance = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(outputs), generator=chance)[:examples].sort().values
    coder = train_coder(
        outputs[chosen].flatten(0, 2),
        features=features,
        l1=l1,
        lr=lr,
        epochs=epochs,
        seed=seed,
        progress=progress,
        cancel=cancel,
    )
    codes = torch.cat([coder.codes(some) for some in outputs.split(32)])  # [n, layer, head]
    positive, negative = codes[:count], codes[count:]
    return DiscreteCircuit(
        heads=count_exclusive(positive.flatten(1), negative.flatten(1)).view(codes.shape[1:]).float(),
        edges=count_pairs(positive, negative, features + 1).float(),
        positive_codes=positive,
        negative_codes=negative,
        losses=coder.losses,
        seconds=time.perf_counter() - began,
    )


def head_outputs(
    model: LanguageModel, positives: Sequence[str] | Tensor, negatives: Sequence[str] | Tensor
) -> tuple[Tensor, int]:
    """What each head adds to the residual stream, mean over positions: `[n, layer, head, d_model]`.

    The positive prompts come first, both kinds in an order that does not depend on the one they are given in.

    Returns:
        The outputs, and how many prompts are positive.
    """
    for name, prompts in (("positive", positives), ("negative", negatives)):
        if isinstance(prompts, str) or len(prompts) == 0:
            raise TaskError(f"There are no {name} prompts; heads are found by what differs between both kinds.")
    kinds = [_sorted(as_tokens(model, prompts)) for prompts in (positives, negatives)]
    lengths = [kind.shape[1] for kind in kinds]
    if lengths[0] != lengths[1]:
        raise TaskError(
            f"The positive prompts have {lengths[0]} tokens and the negative ones {lengths[1]}; what heads do is "
            "compared by its mean over positions, so all need the same number."
        )
    points = [head_point(model, layer) for layer in range(model.network.n_layers)]
    found = capture_all(model, torch.cat(kinds), points)
    rows = [
        torch.einsum("nhd,hdm->nhm", found[point].float().mean(1), output_weights(model, layer))
        for layer, point in enumerate(points)
    ]
    return torch.stack(rows, 1), len(kinds[0])


def count_exclusive(positive: Tensor, negative: Tensor) -> Tensor:
    """In each column how many values occur among positive `[n, columns]` and never among negative `[m, columns]`."""
    marked = torch.cat([2 * positive, 2 * negative + 1]).sort(0).values  # of equal values those of negatives come last
    value = marked // 2
    last = torch.ones_like(value, dtype=torch.bool)
    last[:-1] = value[:-1] != value[1:]
    return (last & (marked % 2 == 0)).sum(0)


def count_pairs(positive: Tensor, negative: Tensor, codes: int) -> Tensor:
    """The same for pairs of columns of codes `[n, layer, head]`, from a layer to each later one.

    Returns:
        `[layer, head, layer, head]`.
    """
    _, layers, heads = positive.shape
    found = torch.zeros(layers, heads, layers, heads, dtype=torch.long)
    for layer in range(layers - 1):
        for head in range(heads):
            pairs = [
                (kind[:, layer, head, None, None] * codes + kind[:, layer + 1 :]).flatten(1)
                for kind in (positive, negative)
            ]
            found[layer, head, layer + 1 :] = count_exclusive(*pairs).view(-1, heads)
    return found


def _sorted(tokens: Tensor) -> Tensor:
    """The rows in the order of their token ids."""
    order = sorted(range(len(tokens)), key=lambda row: tokens[row].tolist())
    return tokens[order]
