"""Rounding of weights to few values: the levels of quantisation that EvoPress (arXiv 2410.14649) chooses among.

The rounding is to nearest, symmetric, with one scale for each output: the largest weight of a row is the largest value.
The weights stay in floating point, so a checkpoint loads everywhere and shows what the rounding costs, but it does not
get smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from workbench.core.checks import Integer, Natural, Number, Positive, checked
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model
from workbench.surgery.operations.matrices import MatrixLevels, per_matrix
from workbench.surgery.operations.weights import all_matrices, check_coverage
from workbench.surgery.registry import Argument, Cancelled, Operation, register
from workbench.surgery.search.budgets import SearchResult
from workbench.surgery.search.evopress import Method, search
from workbench.surgery.search.fitness import DenseKL

Bits = Annotated[Integer, Ge(2), Le(16)]
"""Bits of a weight."""


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A matrix `[out, in]` with each row rounded to the 2^bits - 1 values around 0 that reach to its largest one.

    It is in float32 for a matrix in 16 bits; a model in 16 bits rounds those values once more.
    """
    weight, most = weight.to(torch.promote_types(weight.dtype, torch.float32)), 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / most  # [out, 1]
    return (weight / scale.where(scale > 0, 1)).round_().mul_(scale)


@checked(SurgeryError)
def quantise(
    model: LanguageModel | Child,
    bits: Bits = 8,
    *,
    per_part: Mapping[str, Bits] | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child in which all matrices of the layers are rounded, each expert's included.

    The step's `covered` is the share of the layers' weights that these matrices hold.

    Args:
        model: a model or a child; it stays as it is.
        bits: of each weight, from 2 to 16.
        per_part: bits of single matrices, by path, in place of `bits`.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: bits out of range, an unknown matrix, or weights in a form that can't be read.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    known = all_matrices(model)
    chosen = per_matrix(model, list(known), bits, per_part)
    covered = check_coverage(model, known)
    parameters, tensors = parameters_of(model.network.module), dict[str, Tensor]()
    for done, (path, one) in enumerate(chosen.items()):
        if progress:
            progress(done / len(chosen), path)
        if cancel is not None and cancel():
            raise Cancelled("Rounding was stopped; nothing has changed.")
        known[path].put(rounded(known[path].of(parameters), one), tensors, parameters)
    step = {"operation": "quantise", "bits": bits, "per_part": dict(per_part or {}), "covered": covered}
    return make_child(model, tensors, step)


@checked(SurgeryError)
def search_bits(
    model: LanguageModel | Child,
    corpus: Corpus,
    bits: Number = 4.0,
    *,
    levels: Sequence[Bits] = (6, 5, 4, 3),
    method: Method = "evopress",
    passes: Positive = 50_000,
    tokens: Positive = 1024,
    context: Integer = 64,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Child, SearchResult]:
    """A rounded child in which a search chose the bits of each matrix, and the result of the search.

    Args:
        model: a model or a child; it stays as it is.
        corpus: texts to calibrate on.
        bits: of a weight, on average over all matrices.
        levels: bits that a matrix can have, falling; an unrounded matrix counts as 16.
        method, passes, tokens, context, seed, progress, cancel: as in `search_sparsity`.

    Raises:
        SurgeryError: an argument out of range, or levels that can't meet `bits`.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    if not levels or not min(levels) <= bits <= 16:
        raise SurgeryError(
            "bits, the mean over all matrices, lies between the least of levels and 16, those of a matrix left as it "
            f"is; not {bits:g} with levels {list(levels)}."
        )
    covered = check_coverage(model, all_matrices(model))
    space = MatrixLevels(model, [lambda _, w, n=n: rounded(w, n) for n in levels], [16, *levels])
    weights = sum(costs[0] for costs in space.costs) / 16
    how: dict[str, Any] = {"passes": passes, "seed": seed, "progress": progress, "cancel": cancel}
    result = search(space, DenseKL(model, corpus, tokens, context=context), bits * weights, method, **how)
    chosen = {path: levels[level - 1] for path, level in result.chosen.items()}
    step = {"operation": "quantise", "bits": float(bits), "per_part": chosen, "method": method, "covered": covered}
    return make_child(model, space.tensors(result.levels), step, seed=seed), result


def _run(model: LanguageModel, *, bits: int, **how: Any) -> Child:
    return quantise(model, bits, **how)


register(
    Operation(
        "quantise",
        "Round weights",
        "Rounds every matrix to few values per row; the checkpoint does not get smaller by it.",
        (Argument("bits", "Bits of a weight", 8, "whole", low=2, high=16),),
        _run,
        neutral="16 bits still round",
    )
)
