"""Methods that find a direction from two classes of activations. A new method is one function with `@method`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.core.type_words import shown
from workbench.directions.errors import DirectionError
from workbench.directions.linear import centred, logistic, ridge

Method = Callable[[Tensor, Tensor], Tensor]
"""From positives `[n, d]` and negatives `[m, d]`, float64, to a vector `[d]` of any length that points to the
positives."""
METHODS: dict[str, Method] = {}
"""By name."""
OF_PAIRS: set[str] = set()
"""Names of methods that take positive i and negative i as a pair."""


def method(name: str, *, pairs: bool = False) -> Callable[[Method], Method]:
    """Register a method under a name; `pairs` says that it takes pairs."""

    def register(found: Method) -> Method:
        METHODS[name] = found
        if pairs:
            OF_PAIRS.add(name)
        return found

    return register


def method_called(name: str) -> Method:
    """The method of this name; raises `DirectionError` if there is none."""
    if name not in METHODS:
        raise DirectionError(f"There is no method {shown(name)}; there are {', '.join(METHODS)}.")
    return METHODS[name]


@method("difference")
def difference(positives: Tensor, negatives: Tensor) -> Tensor:
    """The difference of the means (Marks & Tegmark 2023, "The Geometry of Truth")."""
    return positives.mean(0) - negatives.mean(0)


@method("pca", pairs=True)
def pca(positives: Tensor, negatives: Tensor) -> Tensor:
    """The direction along which the differences of pairs are largest, in the mean of their squares.

    It is the first right singular vector of the differences, which are not centred (Zou et al. 2023, "Representation
    Engineering", centre differences of alternating sign, whose mean is 0). Pair i is positive i and negative i.
    """
    if len(positives) != len(negatives):
        raise DirectionError(
            f"The method pca takes pairs, and there are {len(positives)} positives and {len(negatives)} negatives; "
            "give as many of each, pair by pair, or choose another method."
        )
    pairs = positives - negatives
    first = torch.linalg.svd(pairs, full_matrices=False).Vh[0]
    return first * _sign(pairs.mean(0) @ first)


@method("logistic")
def logistic_probe(positives: Tensor, negatives: Tensor) -> Tensor:
    """The weights of a logistic regression; its L2 penalty is chosen by cross-validation inside.

    Where the classes can be told apart without an error it follows the samples nearest to the other class, so that
    "difference" and "ridge" are nearer to the direction by which the classes differ.
    """
    return logistic(*_labelled(positives, negatives))


@method("ridge")
def ridge_probe(positives: Tensor, negatives: Tensor) -> Tensor:
    """The weights of a ridge regression on labels 1 and -1; its penalty has the least leave-one-out error."""
    x, y = _labelled(positives, negatives)
    return ridge(x, y[:, None]).weights[:, 0]


@method("lda")
def lda(positives: Tensor, negatives: Tensor) -> Tensor:
    """Linear discriminant analysis: the difference of the means, whitened by the covariance within classes.

    The covariance is shrunk towards a multiple of the identity by the share of Ledoit & Wolf (2004), "A
    well-conditioned estimator for large-dimensional covariance matrices".
    """
    if len(positives) == len(negatives) == 1:
        raise DirectionError(
            "The method lda finds how the texts of a class differ, and beside those held out there is one of each "
            "class; give at least four of each, or choose another method."
        )
    within = torch.cat([centred(positives)[0], centred(negatives)[0]])
    n, d = within.shape
    _, scale, rows = torch.linalg.svd(within, full_matrices=False)
    mean = float(scale.square().sum()) / n / d
    share = ledoit_wolf(within)
    floor = share * mean
    if floor <= 0:
        raise DirectionError(
            "The texts of each class have the same activations; the method lda needs some that differ."
        )
    kept = rows @ (positives.mean(0) - negatives.mean(0))
    variances = (1 - share) * scale.square() / n
    delta = positives.mean(0) - negatives.mean(0)
    return delta / floor + rows.T @ ((1 / (variances + floor) - 1 / floor) * kept)


def ledoit_wolf(x: Tensor) -> float:
    """The share by which a covariance is shrunk, from 0 to 1, of centred samples `[n, d]`; see `lda` for the source."""
    n, d = x.shape
    gram = x @ x.T / n
    mean = float(gram.diagonal().sum()) / d
    spread = float(gram.square().sum()) - d * mean**2  # the squared distance to the multiple of the identity
    # the mean squared distance of single samples' products to the covariance
    noise = float((gram.diagonal() * n).square().sum()) / n**2 - float(gram.square().sum()) / n
    return 1.0 if spread <= 0 else min(1.0, max(0.0, noise / spread))


def _labelled(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Both classes' samples `[n + m, d]`, and their labels, 1 and -1, `[n + m]`."""
    y = torch.ones(len(positives) + len(negatives), dtype=positives.dtype)
    y[len(positives) :] = -1
    return torch.cat([positives, negatives]), y


def _sign(value: Any) -> float:
    return -1.0 if float(value) < 0 else 1.0
