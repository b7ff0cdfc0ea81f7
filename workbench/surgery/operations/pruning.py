"""Pruning: weights that matter least are set to zero.

By magnitude, or by Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023, arXiv
2306.11695): a weight's magnitude times the length of its input over a calibration text, compared within a row of the
matrix. N:M keeps the N best of every M neighbours in a row. `search_sparsity` lets every matrix have a sparsity of its
own, found by EvoPress (arXiv 2410.14649).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child, SurgeryError, make_child
from workbench.surgery.inputs import as_model, calibration, load_calibration
from workbench.surgery.operations.matrices import MatrixLevels, as_stored, input_norms, matrices, out_in, per_matrix
from workbench.surgery.registry import Argument, Cancelled, Operation, register
from workbench.surgery.search.budgets import SearchResult
from workbench.surgery.search.evopress import search
from workbench.surgery.search.fitness import DenseKL

SCORES = ("magnitude", "wanda")


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
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise SurgeryError(
            f"An N:M pattern keeps N of every M weights, such as 2:4, with N from 1 and below M; not {pattern!r}."
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
        raise SurgeryError(f"The pattern is 'row', 'matrix', or N:M such as '2:4', not {pattern!r}.")
    m = n_of_m(pattern)[1]
    for path in matrices(model):
        width = out_in(model.network.module.get_submodule(path)).shape[1]
        if width % m:
            raise SurgeryError(f"{path} has {width} inputs, which can't be divided into groups of {m}.")


def prune(
    model: LanguageModel | Child,
    sparsity: float = 0.5,
    *,
    score: str = "wanda",
    pattern: str = "row",
    corpus: Corpus | None = None,
    tokens: int = 4096,
    sparsities: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """Set weights of all matrices of the layers to zero.

    Args:
        model: left as it is.
        sparsity: share of each matrix that goes; with an N:M pattern it is 1 - N/M, whatever is said here.
        score: "magnitude" or "wanda".
        pattern: see `kept`.
        corpus: texts to calibrate Wanda on; the bundled stories without it.
        tokens: of the calibration.
        sparsities: of single matrices, by path, instead of `sparsity`.
        seed: of the choice of the texts.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: a sparsity outside [0, 1), an unknown score, pattern or matrix.
        Cancelled: it was stopped.
    """
    _given, model = model, as_model(model)
    wanted = per_matrix(model, sparsity, sparsities)
    for one in wanted.values():
        check_sparsity(one)
    check_pattern(model, pattern)
    if ":" in pattern:
        if sparsities:
            raise SurgeryError(f"The pattern {pattern} has one sparsity for all matrices; leave out sparsities.")
        n, m = n_of_m(pattern)
        sparsity = 1 - n / m
    scored = Scores(model, score, corpus, tokens, seed)
    tensors = {}
    for done, (path, share) in enumerate(wanted.items()):
        if progress:
            progress(done / len(wanted), path)
        if cancel is not None and cancel():
            raise Cancelled("Pruning was stopped; nothing has changed.")
        module = model.network.module.get_submodule(path)
        weight = out_in(module)
        keep = kept(scored(path, weight), share, pattern)
        tensors[f"{path}.weight"] = as_stored(module, weight * keep)
    step = {"operation": "prune", "sparsity": float(sparsity), "score": score, "pattern": pattern, **scored.about}
    return make_child(model, tensors, step | {"sparsities": dict(sparsities or {})}, seed=seed)


def search_sparsity(
    model: LanguageModel | Child,
    corpus: Corpus,
    sparsity: float = 0.5,
    *,
    levels: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    method: str = "evopress",
    score: str = "wanda",
    pattern: str = "row",
    passes: int = 50_000,
    tokens: int = 1024,
    context: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Child, SearchResult]:
    """Prune with a sparsity of its own for each matrix, found by a search.

    Args:
        model: left as it is.
        corpus: texts to calibrate on.
        sparsity: of all matrices together.
        levels: sparsities that a matrix can have, rising; the model as it is comes in front of them.
        method: "evopress", "greedy", "ranked" or "uniform".
        score, pattern: as in `prune`, but for N:M.
        passes, tokens, context, seed: as in `drop_sublayers`.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: sparsities that can't be had, or as `prune`.
        Cancelled: it was stopped.
    """
    _given, model = model, as_model(model)
    if not isinstance(levels, Sequence):
        raise SurgeryError(f"levels is a list of sparsities, not {levels!r}.")
    for one in (sparsity, *levels):
        check_sparsity(one)
    if not levels or sparsity > max(levels):
        raise SurgeryError(
            f"sparsity, that of all matrices together, is at most the highest of levels; not {sparsity:g} with levels "
            f"{list(levels)}."
        )
    if pattern not in ("row", "matrix"):
        raise SurgeryError(f"The pattern of a search is 'row' or 'matrix', not {pattern!r}.")
    scored = Scores(model, score, corpus, 4 * tokens, seed)
    space = MatrixLevels(
        model,
        [lambda path, w, share=share: w * kept(scored(path, w), share, pattern) for share in levels],
        [1.0, *(1 - share for share in levels)],
    )
    budget = (1 - sparsity) * sum(costs[0] for costs in space.costs)
    how: dict[str, Any] = {"passes": passes, "seed": seed, "progress": progress, "cancel": cancel}
    found = search(space, DenseKL(model, corpus, tokens, context=context), budget, method, **how)
    shares = {path: levels[level - 1] for path, level in found.chosen.items()}
    step = {"operation": "prune", "sparsity": sparsity, "score": score, "pattern": pattern, "sparsities": shares}
    return make_child(model, space.tensors(found.levels), step | scored.about | {"method": method}, seed=seed), found


class Scores:
    """How much each weight matters.

    Args:
        model: whose weights.
        score: "magnitude" or "wanda".
        corpus, tokens, seed: what Wanda is calibrated on; the bundled stories where the corpus is None.

    Attributes:
        about: what is recorded of it.

    Raises:
        SurgeryError: an unknown score.
    """

    def __init__(self, model: LanguageModel, score: str, corpus: Corpus | None, tokens: int, seed: int):
        if score not in SCORES:
            raise SurgeryError(f"The score is one of {', '.join(SCORES)}, not {score!r}.")
        self._norms: dict[str, Tensor] | None = None
        self.about: dict[str, Any] = {}
        if score == "wanda":
            corpus = calibration(corpus)
            self._norms = input_norms(model, corpus, tokens, seed=seed)
            self.about = {"calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}

    def __call__(self, path: str, weight: Tensor) -> Tensor:
        """Of a matrix `[out, in]`."""
        return weight.abs() if self._norms is None else weight.abs() * self._norms[path]


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity that is none, or that leaves nothing.

    Raises:
        SurgeryError: so it is.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise SurgeryError(f"The sparsity is a number from 0 to below 1, not {sparsity!r}: at 1 nothing would be left.")


def _run(model: LanguageModel, *, corpus: str, **how: Any) -> Child:
    return prune(model, corpus=load_calibration(corpus), **how)


register(
    Operation(
        "prune",
        "Prune weights",
        "Sets the weights that matter least to zero; the checkpoint does not get smaller by it.",
        (
            Argument("sparsity", "Share of weights", 0.5, low=0.0, high=0.999),
            Argument("score", "By", "wanda", "choice", choices=SCORES),
            Argument("pattern", "Compared within", "row", "text", help="row, matrix, or N:M such as 2:4"),
            Argument("corpus", "Texts to calibrate on", "stories", "text"),
            Argument("tokens", "Tokens to calibrate on", 2048, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
