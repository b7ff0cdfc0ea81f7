"""How well scores of heads or edges agree with a truth."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.tasks import TaskError


@dataclass(frozen=True)
class Judgement:
    """Scores against a truth."""

    auc: float
    """Area under the ROC curve: how often something of the circuit scores above something else, ties counted half."""
    average_precision: float
    """Area under the precision-recall curve; among equal scores the mean precision of their block is used."""
    precision: float
    """Share of what was chosen that is in the circuit."""
    recall: float
    """Share of the circuit that was chosen."""
    chosen: int
    """The highest scores, as many as the circuit has members, and all that are equal to the lowest of them."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def judge(scores: Tensor, circuit: Tensor) -> Judgement:
    """Judge scores against a circuit.

    Args:
        scores: of any shape; higher means more surely in the circuit.
        circuit: bool, of the same shape.

    Raises:
        TaskError: shapes that differ, scores that are no numbers, or a circuit of everything or nothing.
    """
    scores, circuit = _checked(scores, circuit)
    members = int(circuit.sum())
    least = scores.sort(descending=True).values[members - 1]
    chosen = scores >= least
    hits = int((chosen & circuit).sum())
    return Judgement(
        auc=roc_auc(scores, circuit),
        average_precision=_average_precision(scores, circuit),
        precision=hits / int(chosen.sum()),
        recall=hits / members,
        chosen=int(chosen.sum()),
    )


def roc_auc(scores: Tensor, circuit: Tensor) -> float:
    """How often a member of the circuit scores above one that is none, ties counted half; errors as in `judge`."""
    scores, circuit = _checked(scores, circuit)
    rest = scores[~circuit].sort().values
    below = torch.searchsorted(rest, scores[circuit], right=False)
    up_to = torch.searchsorted(rest, scores[circuit], right=True)
    return float((below + up_to).double().mean() / (2 * len(rest)))


def roc_curve(scores: Tensor, circuit: Tensor) -> tuple[list[float], list[float]]:
    """False and true positive rates for every threshold, from (0, 0) to (1, 1); errors as in `judge`."""
    scores, circuit = _checked(scores, circuit)
    order = scores.sort(descending=True)
    hit = circuit[order.indices].double()
    ends = torch.cat([order.values[1:] != order.values[:-1], torch.tensor([True])])
    false, true = ((1 - hit).cumsum(0)[ends], hit.cumsum(0)[ends])
    return [0.0, *(false / false[-1]).tolist()], [0.0, *(true / true[-1]).tolist()]


def circuit_of(effects: Tensor, share: float = 0.1) -> Tensor:
    """The parts with the largest effects of either sign: bool, of the same shape.

    Args:
        effects: of any shape.
        share: how many of them, rounded up.
    """
    if not 0 < share < 1:
        raise TaskError(f"share is between 0 and 1, not {share!r}.")
    flat = effects.abs().flatten()
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(math.ceil(share * len(flat) - 1e-9)).indices] = True
    return chosen.view(effects.shape)


def _checked(scores: Tensor, circuit: Tensor) -> tuple[Tensor, Tensor]:
    if scores.shape != circuit.shape:
        raise TaskError(f"The scores are {tuple(scores.shape)} and the circuit is {tuple(circuit.shape)}.")
    scores, circuit = scores.flatten().double(), circuit.flatten().bool()
    if bool(scores.isnan().any()):
        raise TaskError("Some of the scores are no numbers.")
    if not bool(circuit.any()) or bool(circuit.all()):
        raise TaskError("A circuit is some of all heads or edges, neither none nor all of them.")
    return scores, circuit


def _average_precision(scores: Tensor, circuit: Tensor) -> float:
    order = scores.sort(descending=True)
    hit = circuit[order.indices].double()
    ends = torch.cat([order.values[1:] != order.values[:-1], torch.tensor([True])]).nonzero()[:, 0]
    hits = hit.cumsum(0)[ends]
    precision = hits / (ends + 1)
    return float((precision * torch.diff(hits, prepend=torch.zeros(1).double())).sum() / hit.sum())
