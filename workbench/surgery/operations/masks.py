"""Which weights of a matrix stay, by score: within the matrix, within each row, or N of every M neighbours in a row."""

from __future__ import annotations

import re
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from workbench.core.checks import Number
from workbench.core.type_words import shown
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.operations.weights import all_matrices

Sparsity = Annotated[Number, Ge(0), Lt(1)]
"""A share of the weights that goes: from 0 to below 1, at which nothing would be left."""


def kept(score: Tensor, sparsity: float, pattern: str = "row") -> Tensor:
    """Which weights stay.

    Args:
        score: of each weight, `[out, in]`, higher is better.
        sparsity: share that goes, rounded down to a whole number of weights; an N:M pattern has its own.
        pattern: weights are compared within the "matrix", within each "row", or among M neighbours in a row: "2:4".

    Returns:
        Bool, `[out, in]`.
    """
    if ":" in pattern:
        n, m = n_of_m(pattern)
        grouped = score.reshape(score.shape[0], -1, m)  # [out, in / m, m]
        best = grouped.topk(n, dim=-1).indices
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True).reshape(score.shape)
    rows = score.reshape(1, -1) if pattern == "matrix" else score
    gone = int(sparsity * rows.shape[1] + 1e-6)
    if gone == 0:
        return torch.ones_like(score, dtype=torch.bool)
    worst = rows.topk(gone, dim=1, largest=False, sorted=False).indices
    keep = torch.ones_like(rows, dtype=torch.bool).scatter_(1, worst, False)
    return keep.reshape(score.shape)


def n_of_m(pattern: str) -> tuple[int, int]:
    """Both numbers of a pattern such as "2:4".

    Raises:
        SurgeryError: another pattern, or one that keeps nothing or everything.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", pattern)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise SurgeryError(
            f"An N:M pattern keeps N of every M weights, such as 2:4, with N from 1 and below M; not {shown(pattern)}."
        )
    return int(match[1]), int(match[2])


def check_pattern(model: LanguageModel, pattern: str) -> None:
    """Refuse a pattern that there is none of, or that does not fit the model's matrices.

    Raises:
        SurgeryError: so it is.
    """
    if pattern in ("row", "matrix"):
        return
    if not isinstance(pattern, str) or ":" not in pattern:
        raise SurgeryError(f"The pattern is 'row', 'matrix', or N:M such as '2:4', not {shown(pattern)}.")
    m = n_of_m(pattern)[1]
    parameters = parameters_of(model.network.module)
    for path, one in all_matrices(model).items():
        width = one.of(parameters).shape[1]
        if width % m:
            raise SurgeryError(f"{path} has {width} inputs, which can't be divided into groups of {m}.")
