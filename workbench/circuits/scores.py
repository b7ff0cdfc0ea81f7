"""Agreement of scores of heads or edges with a known circuit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.core.checks import Floats, Number, checked
from workbench.core.display import Shown


@dataclass(frozen=True)
class ScoreEvaluation(Shown):
    """Agreement of scores with a circuit."""

    auc: float
    """Area under the ROC curve: the probability that a member of the circuit scores above a non-member; ties count
    half."""
    average_precision: float
    """Area under the precision-recall curve; equal scores share the precision of their block."""
    precision: float
    """Share of the chosen that is in the circuit."""
    recall: float
    """Share of the circuit that is chosen."""
    chosen: int
    """Number of the chosen: the highest scores, as many as the circuit has members, and all equal to the lowest of
    these."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@checked(TaskError)
def evaluate_scores(scores: Tensor, circuit: Tensor) -> ScoreEvaluation:
    """Agreement of scores with a circuit.

    Args:
        scores: of any shape; a higher score means more likely in the circuit.
        circuit: bool, of the same shape.

    Raises:
        TaskError: shapes that differ, scores that are NaN, or a circuit of everything or nothing.
    """
    scores, circuit = _flat(scores, circuit)
    members = int(circuit.sum())
    least = scores.sort(descending=True).values[members - 1]
    chosen = scores >= least
    hits = int((chosen & circuit).sum())
    return ScoreEvaluation(
        auc=roc_auc(scores, circuit),
        average_precision=_average_precision(scores, circuit),
        precision=hits / int(chosen.sum()),
        recall=hits / members,
        chosen=int(chosen.sum()),
    )


@checked(TaskError)
def roc_auc(scores: Tensor, circuit: Tensor) -> float:
    """The probability that a member of the circuit scores above a non-member; ties count half.

    Errors as in `evaluate_scores`.
    """
    scores, circuit = _flat(scores, circuit)
    rest = scores[~circuit].sort().values
    below = torch.searchsorted(rest, scores[circuit], right=False)
    up_to = torch.searchsorted(rest, scores[circuit], right=True)
    return float((below + up_to).double().mean() / (2 * len(rest)))


@checked(TaskError)
def roc_curve(scores: Tensor, circuit: Tensor) -> tuple[list[float], list[float]]:
    """False and true positive rates for every threshold, from (0, 0) to (1, 1); errors as in `evaluate_scores`."""
    scores, circuit = _flat(scores, circuit)
    order = scores.sort(descending=True)
    hit = circuit[order.indices].double()
    ends = torch.cat([order.values[1:] != order.values[:-1], torch.tensor([True])])
    false, true = ((1 - hit).cumsum(0)[ends], hit.cumsum(0)[ends])
    return [0.0, *(false / false[-1]).tolist()], [0.0, *(true / true[-1]).tolist()]


@checked(TaskError)
def strongest_components(effects: Floats, share: Annotated[Number, Gt(0), Lt(1)] = 0.1) -> Tensor:
    """The components with the largest absolute effects: bool, of the same shape.

    Args:
        effects: of any shape.
        share: share of the components, their number rounded up.

    Raises:
        TaskError: a share that is not between 0 and 1.
    """
    flat = effects.abs().flatten()
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(math.ceil(share * len(flat) - 1e-9)).indices] = True
    return chosen.view(effects.shape)


def _flat(scores: Tensor, circuit: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as float64 and the circuit as bool, both `[n]`."""
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
