"""Pruning: the weights that matter least become zero.

By magnitude, or by Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023, arXiv
2306.11695): a weight's magnitude times the length of its input over a calibration text, compared within a row of the
matrix. N:M keeps the N best of every M neighbours in a row. `search_sparsity` gives every matrix a sparsity of its own,
which EvoPress (arXiv 2410.14649) chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.progress import Progress
from workbench.core.type_words import shown
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.surgery.child import Child, make_child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model, calibration, load_calibration
from workbench.surgery.operations.masks import Sparsity, check_pattern, kept, n_of_m
from workbench.surgery.operations.matrices import MatrixLevels, input_norms, per_matrix
from workbench.surgery.operations.weights import Matrix, all_matrices, check_coverage
from workbench.surgery.registry import Argument, Cancelled, Operation, register
from workbench.surgery.search.budgets import SearchResult
from workbench.surgery.search.evopress import Method, search
from workbench.surgery.search.fitness import DenseKL

Score = Literal["magnitude", "wanda"]


@checked(SurgeryError)
def prune(
    model: LanguageModel | Child,
    sparsity: Sparsity = 0.5,
    *,
    score: Score = "wanda",
    pattern: str = "row",
    corpus: Corpus | None = None,
    tokens: Positive = 4096,
    sparsities: Mapping[str, Sparsity] | None = None,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child in which weights of all matrices of the layers are zero, each expert's included.

    The step's `covered` is the share of the layers' weights that these matrices hold.

    Args:
        model: a model or a child; it stays as it is.
        sparsity: share of each matrix that becomes zero, from 0 to below 1; an N:M pattern replaces it by 1 - N/M.
        score: how much a weight matters.
        pattern: where weights are compared; see `masks.kept`.
        corpus: texts to calibrate Wanda on; by default the bundled stories.
        tokens: number of tokens of the calibration.
        sparsities: of single matrices, by path, in place of `sparsity`.
        seed: of the choice of the texts.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: an argument out of range, a pattern that does not fit the matrices, an unknown matrix, Wanda
            where the inputs of a matrix can't be seen, or weights in a form that can't be read.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    known = all_matrices(model)
    shares = per_matrix(model, list(known), sparsity, sparsities)
    covered = check_coverage(model, known)
    check_pattern(model, pattern)
    if ":" in pattern:
        if sparsities:
            raise SurgeryError(f"The pattern {pattern} has one sparsity for all matrices; leave out sparsities.")
        n, m = n_of_m(pattern)
        sparsity = 1 - n / m
    scores = Scores(model, score, corpus, tokens, seed=seed, known=known)
    parameters, tensors = parameters_of(model.network.module), dict[str, Tensor]()
    for done, (path, share) in enumerate(shares.items()):
        if progress:
            progress(done / len(shares), path)
        if cancel is not None and cancel():
            raise Cancelled("Pruning was stopped; nothing has changed.")
        weight = known[path].of(parameters)
        known[path].put(weight * kept(scores(path, weight), share, pattern), tensors, parameters)
    step = {"operation": "prune", "sparsity": float(sparsity), "score": score, "pattern": pattern, **scores.about}
    step |= {"sparsities": dict(sparsities or {}), "covered": covered}
    return make_child(model, tensors, step, seed=seed)


@checked(SurgeryError)
def search_sparsity(
    model: LanguageModel | Child,
    corpus: Corpus,
    sparsity: Sparsity = 0.5,
    *,
    levels: Sequence[Sparsity] = (0.3, 0.4, 0.5, 0.6, 0.7),
    method: Method = "evopress",
    score: Score = "wanda",
    pattern: Literal["row", "matrix"] = "row",
    passes: Positive = 50_000,
    tokens: Positive = 1024,
    context: Integer = 64,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> tuple[Child, SearchResult]:
    """A pruned child in which a search chose the sparsity of each matrix, and the result of the search.

    Args:
        model: a model or a child; it stays as it is.
        corpus: texts to calibrate on.
        sparsity: of all matrices together.
        levels: sparsities that a matrix can have, rising; the unpruned matrix precedes them.
        method: "evopress", "greedy", "ranked" or "uniform".
        score, pattern: as in `prune`, without N:M.
        passes, tokens, context, seed: as in `drop_sublayers`.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: an argument out of range, or levels that can't meet `sparsity`.
        Cancelled: `cancel` returned True.
    """
    model = as_model(model)
    if not levels or sparsity > max(levels):
        raise SurgeryError(
            f"sparsity, that of all matrices together, is at most the highest of levels; not {sparsity:g} with levels "
            f"{shown(list(levels))}."
        )
    known = all_matrices(model)
    covered = check_coverage(model, known)
    scores = Scores(model, score, corpus, 4 * tokens, seed=seed, known=known)
    space = MatrixLevels(
        model,
        [lambda path, w, share=share: w * kept(scores(path, w), share, pattern) for share in levels],
        [1.0, *(1 - share for share in levels)],
    )
    budget = (1 - sparsity) * sum(costs[0] for costs in space.costs)
    how: dict[str, Any] = {"passes": passes, "seed": seed, "progress": progress, "cancel": cancel}
    result = search(space, DenseKL(model, corpus, tokens, context=context), budget, method, **how)
    shares = {path: levels[level - 1] for path, level in result.chosen.items()}
    step = {"operation": "prune", "sparsity": sparsity, "score": score, "pattern": pattern, "sparsities": shares}
    step |= scores.about | {"method": method, "covered": covered}
    return make_child(model, space.tensors(result.levels), step, seed=seed), result


class Scores:
    """How much each weight matters.

    Args:
        model: whose weights.
        score: "magnitude" or "wanda".
        corpus, tokens, seed: the calibration of Wanda; the bundled stories where the corpus is None.
        known: the matrices that are scored.

    Raises:
        SurgeryError: Wanda, where experts or other parameters outside linear modules have inputs that no hook sees.

    Attributes:
        about: the calibration as plain data.
    """

    def __init__(
        self,
        model: LanguageModel,
        score: Score,
        corpus: Corpus | None,
        tokens: int,
        *,
        seed: int,
        known: Mapping[str, Matrix],
    ):
        self._norms: dict[str, Tensor] | None = None
        self.about: dict[str, Any] = {}
        if score == "wanda":
            loose = [path for path, one in known.items() if not one.linear]
            if loose:
                raise SurgeryError(
                    f"Wanda needs the inputs of every matrix, and no module receives those of {loose[0]} (of "
                    f'{len(loose)} such matrices in {model.name}); use score="magnitude".'
                )
            corpus = calibration(corpus)
            self._norms = input_norms(model, corpus, tokens, seed=seed)
            self.about = {"calibrated_on": corpus.name, "corpus_hash": corpus.hash, "tokens": tokens}

    def __call__(self, path: str, weight: Tensor) -> Tensor:
        """The scores of a matrix `[out, in]`, of its shape."""
        return weight.abs() if self._norms is None else weight.abs() * self._norms[path]


def _run(model: LanguageModel, *, corpus: str, **how: Any) -> Child:
    return prune(model, corpus=load_calibration(corpus), **how)


register(
    Operation(
        "prune",
        "Prune weights",
        "Sets the weights that matter least to zero; the checkpoint does not get smaller by it.",
        (
            Argument("sparsity", "Share of weights", 0.5, low=0.0, high=0.999, neutral=0.0),
            Argument("score", "By", "wanda", "choice", choices=get_args(Score)),
            Argument("pattern", "Compared within", "row", "text", help="row, matrix, or N:M such as 2:4"),
            Argument("corpus", "Texts to calibrate on", "stories", "text"),
            Argument("tokens", "Tokens to calibrate on", 2048, "whole", low=1),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
