"""A small sparse autoencoder on the outputs of all heads; its strongest latent is a head's integer code.

O'Neill, Bui, "Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language Models" (2024), arXiv
2405.12522. Encoder and decoder rows have norm 1; a bias is subtracted before the encoder and added after the decoder;
the loss is the mean squared error plus L1; Adam runs on full batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.core.progress import Progress


@dataclass(frozen=True)
class HeadCoder:
    """A trained autoencoder of head outputs."""

    encoder: Tensor
    """`[features, d_model]`, rows of norm 1."""
    bias: Tensor
    """`[features]`."""
    decoder: Tensor
    """`[features, d_model]`, rows of norm 1."""
    centre: Tensor
    """The bias that is subtracted and added back, `[d_model]`."""
    losses: list[float]
    """The loss of every epoch."""

    def encode(self, outputs: Tensor) -> Tensor:
        """Latents `[..., features]` of head outputs `[..., d_model]`."""
        return ((outputs - self.centre) @ self.encoder.T + self.bias).relu()

    def codes(self, outputs: Tensor) -> Tensor:
        """The strongest latent of each output, `[...]`; the code `features` where none is active."""
        value, code = self.encode(outputs).max(-1)
        return torch.where(value > 0, code, len(self.bias))


def train_coder(
    outputs: Tensor,
    *,
    features: int = 200,
    l1: float = 0.02,
    lr: float = 1e-3,
    epochs: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> HeadCoder:
    """An autoencoder trained on head outputs `[n, d_model]`, all of them in every step.

    Settings and errors as in `find_circuit_discrete`.
    """
    chance = torch.Generator().manual_seed(seed)
    width = outputs.shape[1]
    encoder, decoder = (_unit(torch.randn(features, width, generator=chance)) for _ in range(2))
    bias = (2 * torch.rand(features, generator=chance) - 1) / math.sqrt(width)
    encoder, bias, decoder = (one.to(outputs.device) for one in (encoder, bias, decoder))
    weights = [encoder, bias, decoder, outputs.new_zeros(width)]
    adam = torch.optim.Adam(weights, lr=lr, fused=True)
    losses = []
    for epoch in range(epochs):
        loss, gradients = loss_and_gradients(outputs, *weights, l1=l1)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        adam.step()
        _unit(encoder)
        _unit(decoder)
        losses.append(loss)
        if progress and epoch % 10 == 9:
            progress((epoch + 1) / epochs, f"learning codes: epoch {epoch + 1} of {epochs}")
        if cancel is not None and cancel():
            raise TaskError("The work was cancelled before the autoencoder was trained.")
    encoder, bias, decoder, centre = (one.detach() for one in weights)
    return HeadCoder(encoder, bias, decoder, centre, losses)


def loss_and_gradients(
    x: Tensor, encoder: Tensor, bias: Tensor, decoder: Tensor, centre: Tensor, *, l1: float
) -> tuple[float, list[Tensor]]:
    """The loss and its gradients by the four weights; for rows of norm 1 their part tangential to the sphere.

    The loss is the mean squared error over all entries of x `[n, d_model]`, plus `l1` times the mean over rows of the
    summed latents. Latents that are active on no row, and rows without active latents, are left out of the products to
    which they contribute nothing.
    """
    count, width = x.shape
    pre = torch.addmm(bias - encoder @ centre, x, encoder.T)  # [n, features]
    rows, columns = (pre.amax(side) > 0 for side in (1, 0))
    rows, columns = rows.nonzero()[:, 0], columns.nonzero()[:, 0]
    latents = pre[rows][:, columns].relu_()  # [some rows, some features]
    some, of_decoder, of_encoder = x[rows], decoder[columns], encoder[columns]
    inactive = x.sum(0) - some.sum(0) - (count - len(rows)) * centre  # [d_model], summed over the other rows
    squares = x.square().sum() - some.square().sum() - centre @ (2 * inactive + (count - len(rows)) * centre)
    some -= centre
    error = torch.addmm(some, latents, of_decoder, beta=-1)  # [some rows, d_model]: reconstruction - x
    loss = (error.square().sum() + squares) / (count * width) + l1 * latents.sum() / count
    factor = 2 / (count * width)
    back = torch.mm(error, of_decoder.T).mul_(factor).add_(l1 / count).mul_(latents > 0)  # by the latents
    gradients = [torch.zeros_like(one) for one in (encoder, bias, decoder, centre)]
    gradients[0][columns] = _tangential(back.T @ some, of_encoder)
    gradients[1][columns] = back.sum(0)
    gradients[2][columns] = _tangential(factor * (latents.T @ error), of_decoder)
    gradients[3] += factor * (error.sum(0) - inactive) - back.sum(0) @ of_encoder
    return float(loss), gradients


def _tangential(gradient: Tensor, rows: Tensor) -> Tensor:
    """A gradient without its part along the rows of norm 1."""
    return gradient - (gradient * rows).sum(1, keepdim=True) * rows


def _unit(rows: Tensor) -> Tensor:
    """The rows, scaled in place to norm 1."""
    return torch.nn.functional.normalize(rows, dim=1, out=rows)
