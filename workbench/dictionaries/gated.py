"""Gated: whether a latent is active and how strongly are two functions of one encoder, so that values don't shrink.

Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders" (2024), arXiv 2404.16014. There the
gate opens where x W + b_gate > 0, and the value is the positive part of x W e^r_mag + b_mag. Here the encoder computes
the latter, the magnitude m. The gate's pre-activation is (m - threshold) e^-r_mag, where the threshold is
b_mag - e^r_mag b_gate. That is the same function (appendix E of the paper): a JumpReLU whose thresholds may be below 0.

The loss is the squared error, plus l1 times the gate's positive pre-activations, plus the squared error of what these
reconstruct through a decoder that they do not move.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.checks import Natural, Positive, checked
from workbench.dictionaries.activations import Activation, codes_above
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.settings import L1, Width
from workbench.dictionaries.sparse import DenseEntries, Entries, entries_where, is_sparse
from workbench.dictionaries.trainable import Step
from workbench.dictionaries.variance import squares


class Gate(Activation):
    """Values are the positive pre-activations above the latent's threshold, at which its gate opens.

    Args:
        width: number of latents.
        l1: coefficient of the penalty, the sum of the gate's positive pre-activations in units of the activations'
            size.
    """

    resamples = True
    only_learns = ("l1",)

    def __init__(self, width: int, l1: float = 1.0):
        super().__init__()
        self.l1 = l1
        self.threshold = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.r_mag = nn.Parameter(torch.zeros(width), requires_grad=False)
        """Logarithm of the magnitude's size as a multiple of the gate's."""

    def codes(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """As many columns as the fullest row has open gates."""
        return codes_above(pre, self.threshold)

    def entries(self, pre: Tensor, unit: float) -> Entries:
        """The active latents; where they are many, in the place of all pre-activations."""
        mask = pre > self.threshold.clamp(min=0)
        if is_sparse(mask):
            return entries_where(pre, mask)
        pre.mul_(mask)
        return DenseEntries(pre, pre)

    def initialise(self, unit: float) -> None:
        """Gates open where magnitudes are positive."""
        self.threshold.zero_()
        self.r_mag.zero_()

    def forget(self, latents: Tensor, unit: float) -> None:
        """These gates as at the start."""
        self.threshold[latents] = 0.0
        self.r_mag[latents] = 0.0

    def scale(self, factors: Tensor) -> None:
        """Thresholds times the factors; the gate's pre-activations grow with the magnitudes."""
        self.threshold.mul_(factors)

    def settings(self) -> dict[str, Any]:
        """`l1`."""
        return {"l1": self.l1}


class GatedSAE(SparseCoder):
    """Sparse autoencoder with a gate for each latent.

    Args:
        d_in: width of the activations.
        width: number of latents.
        l1: sparsity coefficient.
        hook_point: what it reads and writes.
        name: what features call it.
        seed: of the starting weights.
    """

    kind = "gated"
    activation: Gate

    @checked(DictionaryError)
    def __init__(
        self,
        d_in: Positive,
        width: Width,
        l1: L1 = 1.0,
        *,
        hook_point: str = "",
        name: str = "",
        seed: Natural | None = 0,
    ):
        super().__init__(d_in, width, Gate(width, l1), reads=hook_point, writes=hook_point, name=name, seed=seed)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """As for other kinds; `r_mag` has no unit."""
        groups = super().parameter_groups(lr)
        for group in groups:
            if group["name"] == "r_mag":
                group["lr"] = lr
        return groups

    @torch.no_grad()
    def loss_and_gradients(
        self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None, sparsity: float = 1.0
    ) -> Step:
        """Squared error, the penalty on open gates, and the squared error of what the gates reconstruct."""
        step = super().loss_and_gradients(x, target, dead=dead, sparsity=sparsity)
        penalty, auxiliary = self._learn_gates(x.to(self.W_enc.dtype), target, sparsity)
        whole = step.error + penalty + auxiliary
        return Step(whole, step.error, penalty, auxiliary, step.fvu, step.l0, step.fired)

    def _learn_gates(self, x: Tensor, target: Tensor | None, sparsity: float) -> tuple[float, float]:
        """Add the gates' part to the gradients that are there; returns their penalty and their squared error."""
        part = self.activation
        target = x if target is None else target.to(x.dtype)
        square, weight = self.unit_out**2 * len(x), part.l1 * sparsity / self.unit_out / len(x)
        centred, pre = self.pre_activations(x)  # [batch, d_in], [batch, width]
        shrink = (-part.r_mag).exp()
        opened = pre.sub_(part.threshold).mul_(shrink).relu_()  # the gate's positive pre-activations
        error = torch.addmm(self.b_dec - target, opened, self.W_dec)  # [batch, d_out]
        slopes = (error @ self.W_dec.T).mul_(2 / square).add_(weight).mul_(opened > 0)  # [batch, width]
        part.r_mag.grad = -(slopes * opened).sum(0)
        slopes *= shrink
        total = slopes.sum(0)  # [width]
        part.threshold.grad = -total
        for parameter, more in ((self.b_enc, total), (self.W_enc_T, slopes.T @ centred)):
            assert parameter.grad is not None
            parameter.grad += more
        if self.centred:
            assert self.b_dec.grad is not None
            self.b_dec.grad -= self.W_enc @ total
        return weight * float(opened.sum()), squares(error) / square
