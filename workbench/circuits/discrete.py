"""Heads of a circuit, found by the integer codes of their outputs; the model needs no backward pass.

O'Neill, Bui (2024), arXiv 2405.12522: a head of the circuit has codes on the prompts of the task that it never has on
corrupted prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from workbench.circuits.discrete_sae import train_coder
from workbench.circuits.errors import TaskError
from workbench.circuits.patching_runs import capture_all, head_matrices, head_path, head_point
from workbench.circuits.tasks import prompt_tokens
from workbench.core.checks import Integer, Number, Positive, PositiveNumber, checked
from workbench.core.display import Tabular, cells
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True)
class DiscreteCircuit(Tabular):
    """Scores of heads and edges by the codes of heads."""

    heads: Tensor
    """`[layer, head]`: number of codes that occur on positive prompts and never on negative ones."""
    edges: Tensor
    """`[layer, head, layer, head]`: number of pairs of codes, of a head and of one in a later layer, that occur
    together on positive prompts and never on negative ones; 0 for all other pairs of heads."""
    positive_codes: Tensor
    """`[n, layer, head]`; the code `features` means that no latent is active."""
    negative_codes: Tensor
    """`[n, layer, head]`, likewise."""
    losses: list[float]
    """The loss of every epoch."""
    seconds: float

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each head."""
        return cells(("layer", "head"), score=self.heads)

    def figure(self) -> Figure:
        """The scores of heads as a map."""
        from workbench.figures.circuits import head_maps

        return head_maps({"codes of the task alone": self.heads.tolist()})

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data; of the losses only the last epoch's."""
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


@checked(TaskError)
def find_circuit_discrete(
    model: LanguageModel,
    positives: Sequence[str] | Tensor,
    negatives: Sequence[str] | Tensor,
    *,
    examples: Positive = 10,
    features: Positive = 200,
    l1: Annotated[Number, Ge(0), Le(1e9)] = 0.02,
    lr: PositiveNumber = 1e-3,
    epochs: Positive = 500,
    centred: bool = False,
    seed: Annotated[Integer, Ge(0), Lt(2**63)] = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> DiscreteCircuit:
    """Scores of all heads and edges by the codes of one small autoencoder.

    Each head's contribution to the residual stream, averaged over positions, is a row. One autoencoder is trained on
    the rows of some prompts of both kinds; it then gives every head one code on every prompt. The order of the prompts
    does not matter. Interventions and splices in force around the call are set aside.

    Args:
        model: the model.
        positives: prompts of the task, as texts or token ids `[n, pos]`.
        negatives: corrupted prompts, with the same number of tokens.
        examples: prompts to train on, drawn from both kinds together; all of them if there are fewer.
        features: latents of the autoencoder.
        l1: weight of the sum of latents, mean over rows, against the mean squared error.
        lr: learning rate of Adam.
        epochs: steps, each on all rows.
        centred: whether each head's mean over all prompts is subtracted first, so that codes describe what varies
            between prompts; the paper does not subtract it.
        seed: of the choice of the prompts and of the initial weights.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: called after each epoch; once it returns True, the work stops with a `TaskError`.

    Raises:
        TaskError: no prompts of one kind, prompts of unequal lengths, a setting out of range, or work that was
            cancelled.
    """
    began = time.perf_counter()
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


@checked(TaskError)
def head_outputs(
    model: LanguageModel, positives: Sequence[str] | Tensor, negatives: Sequence[str] | Tensor
) -> tuple[Tensor, int]:
    """Each head's contribution to the residual stream, mean over positions.

    Returns:
        The contributions `[n, layer, head, d_model]`, those of positive prompts first, both kinds sorted by their token
        ids; and the number of positive prompts.
    """
    for name, prompts in (("positive", positives), ("negative", negatives)):
        if (isinstance(prompts, Tensor) and not prompts.ndim) or len(prompts) == 0:
            raise TaskError(f"There are no {name} prompts; heads are found by the difference between both kinds.")
    kinds = [_sorted(prompt_tokens(model, prompts)) for prompts in (positives, negatives)]
    lengths = [kind.shape[1] for kind in kinds]
    if lengths[0] != lengths[1]:
        raise TaskError(
            f"The positive prompts have {lengths[0]} tokens and the negative ones {lengths[1]}; outputs of heads are "
            "compared by their means over positions, so all need the same number."
        )
    points = [head_point(model, layer) for layer in range(model.network.n_layers)]
    outputs = capture_all(model, torch.cat(kinds), points)
    rows = [_contributions(model, layer, outputs[point]) for layer, point in enumerate(points)]
    return torch.stack(rows, 1), len(kinds[0])


def _contributions(model: LanguageModel, layer: int, z: Tensor) -> Tensor:
    """What each head adds to the stream, mean over positions, `[n, head, d_model]`; z: `[n, pos, head, d_head]`.

    The scale of a norm between is that of each position of the prompt, so that heads sum to what attention adds.
    """
    path = head_path(model, layer)
    scales = path.scales(z.flatten(2))  # [n, pos, 1]
    mean = (z.float() if scales is None else z.float() * scales[..., None]).mean(1)
    return path.directions(torch.einsum("nhd,hdm->nhm", mean, head_matrices(model, layer)))


def count_exclusive(positive: Tensor, negative: Tensor) -> Tensor:
    """For each column the number of values in positive `[n, columns]` that are not in negative `[m, columns]`."""
    marked = torch.cat([2 * positive, 2 * negative + 1]).sort(0).values  # among equals the negatives come last
    value = marked // 2
    last = torch.ones_like(value, dtype=torch.bool)
    last[:-1] = value[:-1] != value[1:]
    return (last & (marked % 2 == 0)).sum(0)


def count_pairs(positive: Tensor, negative: Tensor, codes: int) -> Tensor:
    """`count_exclusive` for pairs of heads, from each layer to each later one.

    Args:
        positive: codes on positive prompts, `[n, layer, head]`.
        negative: codes on negative prompts, `[m, layer, head]`.
        codes: number of different codes.

    Returns:
        `[layer, head, layer, head]`.
    """
    _, layers, heads = positive.shape
    counts = torch.zeros(layers, heads, layers, heads, dtype=torch.long)
    for layer in range(layers - 1):
        for head in range(heads):
            pairs = [
                (kind[:, layer, head, None, None] * codes + kind[:, layer + 1 :]).flatten(1)
                for kind in (positive, negative)
            ]
            counts[layer, head, layer + 1 :] = count_exclusive(*pairs).view(-1, heads)
    return counts


def _sorted(tokens: Tensor) -> Tensor:
    """The rows sorted by their token ids."""
    order = sorted(range(len(tokens)), key=lambda row: tokens[row].tolist())
    return tokens[order]
