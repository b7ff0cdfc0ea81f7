"""Linear models on few samples of many dimensions: ridge with its leave-one-out errors, and logistic regression.

Both work in the coordinates of the samples' own singular vectors, at most as many as there are samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.core.display import Shown

PENALTIES = 10.0 ** torch.arange(-6, 4, dtype=torch.float64)
"""Penalties to choose from, as shares of the mean squared singular value."""
FOLDS, STEPS = 4, 30
ENOUGH = 1e-8
"""Newton's steps end where the gradient's norm is this share of the first one's."""


@dataclass(frozen=True)
class Ridge(Shown):
    """A ridge regression."""

    weights: Tensor = field(repr=False)
    """`[d, targets]`."""
    bias: Tensor = field(repr=False)
    """`[targets]`."""
    penalty: float
    """The penalty on the squared weights, beside the sum of squared errors."""

    def predict(self, x: Tensor) -> Tensor:
        """Predictions `[n, targets]` for samples `[n, d]`."""
        return x @ self.weights + self.bias


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Samples less their mean, `[n, d]`, and the mean `[d]`."""
    mean = x.mean(0)
    return x - mean, mean


def ridge(x: Tensor, y: Tensor, penalty: float | None = None) -> Ridge:
    """The ridge regression of targets on samples, with a bias that is not penalised.

    Args:
        x: float64 `[n, d]`.
        y: float64 `[n, targets]`.
        penalty: None takes, of `PENALTIES`, the one with the least squared leave-one-out error over all targets.
    """
    (inner, mean), (wanted, level) = centred(x), centred(y)
    if len(x) > x.shape[1] or (penalty is not None and not penalty > 0):
        left, scale, right = torch.linalg.svd(inner, full_matrices=False)
        turned, squares = left.T @ wanted, scale.square()
        chosen = _least_left_out(left, squares, turned, wanted) if penalty is None else penalty
        weights = right.T @ (torch.where(scale > 0, scale / (squares + chosen), 0.0)[:, None] * turned)
    else:  # samples' products are the smaller matrix, and a penalty makes up for the squared condition
        squares, left = torch.linalg.eigh(inner @ inner.T)
        turned, squares = left.T @ wanted, squares.clamp_min(0.0)
        chosen = _least_left_out(left, squares, turned, wanted) if penalty is None else penalty
        weights = inner.T @ (left @ (turned / (squares + chosen)[:, None]))
    return Ridge(weights, level - mean @ weights, float(chosen))


def _least_left_out(left: Tensor, squares: Tensor, turned: Tensor, wanted: Tensor) -> float:
    unit = float(squares.mean()) or 1.0
    errors = []
    for penalty in PENALTIES.tolist():
        shrink = squares / (squares + penalty * unit)
        leverage = left.square() @ shrink + 1 / len(left)
        # a leverage of 1 fits its sample whatever it is: that says nothing of others
        slack = (1 - leverage).clamp_min(1e-12)[:, None]
        errors.append(float(((wanted - left @ (shrink[:, None] * turned)) / slack).square().sum()))
    return PENALTIES.tolist()[errors.index(min(errors))] * unit


def logistic(x: Tensor, y: Tensor, penalty: float | None = None) -> Tensor:
    """The weights `[d]` of an L2-penalised logistic regression, with a bias that is not penalised.

    Args:
        x: float64 `[n, d]`.
        y: labels 1 and -1, `[n]`.
        penalty: on half the squared weights, beside the sum of the losses; None takes, of `PENALTIES`, the one with the
            least loss over `FOLDS` folds.
    """
    inner, _ = centred(x)
    _, scale, right = torch.linalg.svd(inner, full_matrices=False)
    right = right[scale > scale[0] * 1e-12] if len(scale) else right
    points = inner @ right.T
    if penalty is not None:
        return right.T @ _newton(points, y, penalty)[:-1]
    unit = float(scale.square().mean()) or 1.0
    chosen = min((share * unit for share in PENALTIES.tolist()), key=lambda one: _left_out_loss(points, y, one))
    return right.T @ _newton(points, y, chosen)[:-1]


def _left_out_loss(points: Tensor, y: Tensor, penalty: float) -> float:
    """The loss of samples under models that were fitted without their fold; each fold has both labels in turn."""
    order = torch.cat([(y > 0).nonzero()[:, 0], (y < 0).nonzero()[:, 0]])
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(y)) % FOLDS
    loss = 0.0
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        if not test.any() or not ((y[train] > 0).any() and (y[train] < 0).any()):
            continue
        fit = _newton(points[train], y[train], penalty)
        margin = y[test] * (points[test] @ fit[:-1] + fit[-1])
        loss += float(torch.nn.functional.softplus(-margin).sum())
    return loss


def _newton(points: Tensor, y: Tensor, penalty: float) -> Tensor:
    """The weights and the bias behind them, `[r + 1]`, by Newton's method with halved steps."""
    design = torch.cat([points, points.new_ones(len(points), 1)], 1)
    ridge = points.new_full((design.shape[1],), penalty)
    ridge[-1] = 0.0
    fit = points.new_zeros(design.shape[1])
    first = None
    for _ in range(STEPS):
        margin = y * (design @ fit)
        share = torch.sigmoid(-margin)
        gradient = ridge * fit - design.T @ (y * share)
        size = float(gradient.norm())
        first = first or size
        if size <= ENOUGH * first:
            break
        curve = (share * (1 - share)).clamp_min(1e-12)
        step = torch.linalg.solve((design.T * curve) @ design + torch.diag(ridge + 1e-12), gradient)
        start, length = _objective(design, y, ridge, fit), 1.0
        while length > 1e-4 and _objective(design, y, ridge, fit - length * step) > start:
            length /= 2
        fit = fit - length * step
    return fit


def _objective(design: Tensor, y: Tensor, ridge: Tensor, fit: Tensor) -> float:
    return float(torch.nn.functional.softplus(-y * (design @ fit)).sum() + (ridge * fit.square()).sum() / 2)
