"""How a cross-layer transcoder learns: `learning.py` for latents of several layers that reconstruct together.

The error of an MLP's output is that of the sum over the layers at or before it, so the gradient of a layer's latents
gathers the errors of all outputs from that layer on. One unit stands for all layers: an MLP whose outputs are larger
weighs more in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.learning import (
    SAMPLE,
    geometric_median,
    gradient_of,
    remove_parallel,
    set_gradient,
    unit_of,
)
from workbench.dictionaries.trainable import Step
from workbench.dictionaries.variance import squares, unexplained


class Layered(Protocol):
    """What these functions need of a dictionary of several layers; see `CrossLayerTranscoder`."""

    d_in: int
    d_out: int
    layers: int
    d_model: int
    per_layer: int
    unit_in: float
    unit_out: float
    initialised: bool
    measured: bool
    W_enc_T: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any
    W_skip: Any
    activations: Any

    @property
    def name(self) -> str:
        """What it is called in error messages."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """Activations where it writes `[n, d_out]`."""
        ...


@torch.no_grad()
def loss_and_gradients(coder: Layered, x: Tensor, target: Tensor | None, sparsity: float) -> Step:
    """See `Trainable.loss_and_gradients`."""
    x, target = _checked(coder, x, target)
    d, spread = coder.d_model, target - coder.b_dec.flatten()  # [batch, d_out]
    read, square = x.chunk(coder.layers, 1), coder.unit_out**2 * len(x)
    error, each = -spread, []
    for layer in range(coder.layers):
        pre = torch.addmm(coder.b_enc[layer], read[layer], coder.W_enc_T[layer].T)
        entries = coder.activations[layer].entries(pre, coder.unit_out)
        each.append(entries)
        error[:, layer * d :] += entries.decode(coder.W_dec[layer].flatten(1))
    for layer, skip in enumerate(coder.W_skip):
        error[:, layer * d : (layer + 1) * d] += read[layer] @ skip
    squared = squares(error)
    g, penalty = error.mul_(2 / square), 0.0
    for layer, entries in enumerate(each):
        behind, decoder = g[:, layer * d :].contiguous(), coder.W_dec[layer].flatten(1)
        products = entries.products(behind, decoder)
        lengthening = entries.value_sums(products)
        slopes, more = coder.activations[layer].backward(entries, products, coder.unit_out, sparsity)
        penalty += more
        set_gradient(coder.b_enc[layer], entries.per_latent(slopes))
        gradient = gradient_of(coder.W_dec[layer]).flatten(1)  # a view
        entries.outer(entries.values, behind, out=gradient)
        remove_parallel(gradient, decoder, lengthening)
        entries.outer(slopes, read[layer].contiguous(), out=gradient_of(coder.W_enc_T[layer]))
    set_gradient(coder.b_dec, g.sum(0).view_as(coder.b_dec))
    for layer, skip in enumerate(coder.W_skip):
        set_gradient(skip, read[layer].T @ g[:, layer * d : (layer + 1) * d])
    fired = torch.cat([entries.fired() for entries in each])
    return Step(
        loss=squared / square + penalty,
        error=squared / square,
        penalty=penalty,
        auxiliary=0.0,
        fvu=unexplained(squared, spread, coder.b_dec.flatten()),
        l0=int(fired.sum()) / len(x),
        fired=fired,
    )


@torch.no_grad()
def initialise(coder: Layered, x: Tensor, target: Tensor | None) -> None:
    """See `Trainable.initialise`."""
    x, target = _checked(coder, x, target)
    middle, source = geometric_median(target), geometric_median(x)
    coder.unit_out, coder.unit_in = unit_of(target, middle), unit_of(x, source)
    coder.b_dec.copy_(middle.view_as(coder.b_dec))
    output = x.new_zeros(len(x[:SAMPLE]), coder.d_out)
    for layer, (read, own) in enumerate(
        zip(x[:SAMPLE].chunk(coder.layers, 1), source.chunk(coder.layers), strict=True)
    ):
        encoder, bias, part = coder.W_enc_T[layer], coder.b_enc[layer], coder.activations[layer]
        encoder.mul_(coder.unit_out / coder.unit_in)
        bias.copy_(-(encoder @ own))
        part.initialise(coder.unit_out)
        entries = part.entries(torch.addmm(bias, read, encoder.T), coder.unit_out)
        part.initialise(coder.unit_out)
        output[:, layer * coder.d_model :] += entries.decode(coder.W_dec[layer].flatten(1))
    wanted = target[:SAMPLE] - middle
    factor = (squares(wanted) / max(squares(output), 1e-30)) ** 0.5 / 4  # as for a transcoder
    for weight in (*coder.W_enc_T, *coder.b_enc) if factor > 0 else ():
        weight.mul_(factor)
    coder.initialised = coder.measured = True


@torch.no_grad()
def adopt(coder: Layered, x: Tensor, target: Tensor | None) -> None:
    """See `Trainable.adopt`: the norm of a latent's decoder rows moves into its encoder, bias and threshold."""
    x, target = _checked(coder, x, target)
    unit_out, unit_in = unit_of(target, geometric_median(target)), unit_of(x, geometric_median(x))
    if not coder.measured:
        coder.unit_out, coder.unit_in = unit_out, unit_in
    for layer, decoder in enumerate(coder.W_dec):
        norms = decoder.flatten(1).norm(dim=1)  # [latents]
        norms = torch.where(norms > 0, norms, 1)
        coder.activations[layer].scale(norms)
        decoder.div_(norms[:, None, None])
        coder.W_enc_T[layer].mul_(norms[:, None])
        coder.b_enc[layer].mul_(norms)
    coder.measured = True


@torch.no_grad()
def resample(
    coder: Layered,
    x: Tensor,
    dead: Tensor,
    target: Tensor | None,
    *,
    optimiser: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
) -> int:
    """Neuron resampling of Bricken et al. 2023, as `learning.resample` does it, for the dead latents of every layer.

    A latent takes over what an activation's target has from the latent's layer on.
    """
    x, target = _checked(coder, x, target)
    if not bool(dead.any()):
        return 0
    loss = (coder.reconstruct(x) - target).square().sum(1)  # [n]
    weights = ((loss / loss.max().clamp(min=1e-30)).square() + 1e-12).cpu()  # the same draws on every device
    spread = target - coder.b_dec.flatten()
    for layer, (own, read) in enumerate(zip(dead.split(coder.per_layer), x.chunk(coder.layers, 1), strict=True)):
        index = own.nonzero()[:, 0]  # [dead]
        if not len(index):
            continue
        drawn = torch.multinomial(weights, len(index), replacement=len(index) > len(x), generator=generator)
        drawn = drawn.to(x.device)
        encoder, decoder, bias = coder.W_enc_T[layer], coder.W_dec[layer], coder.b_enc[layer]
        alive = encoder[~own].norm(dim=1)
        middle = read.mean(0)
        rows = normalize(read[drawn] - middle, dim=1) * (0.2 * float(alive.mean()) if len(alive) else 1.0)
        encoder[index] = rows
        bias[index] = -(rows @ middle)
        decoder[index] = normalize(spread[drawn, layer * coder.d_model :], dim=1).view(-1, *decoder.shape[1:])
        part = coder.activations[layer]
        part.forget(index, coder.unit_out)
        _forget(optimiser, (encoder, decoder, bias, *part.parameters()), index)
    return int(dead.sum())


def _forget(optimiser: torch.optim.Optimizer | None, parameters: Sequence[Any], index: Tensor) -> None:
    """Set an optimiser's moments of some latents to zero."""
    for parameter in parameters:
        for moment in optimiser.state.get(parameter, {}).values() if optimiser else ():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moment.index_fill_(0, index, 0)


def _checked(coder: Layered, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """A batch in the weights' type; refuses one of another form than training needs."""
    dtype = coder.b_dec.dtype
    x = x.to(dtype)
    target = x if target is None else target.to(dtype)
    if x.shape[1:] != (coder.d_in,) or target.shape != (len(x), coder.d_out) or not len(x):
        raise DictionaryError(
            f"{coder.name} learns from activations [batch, {coder.d_in}] and targets [batch, {coder.d_out}], "
            f"not {list(x.shape)} and {list(target.shape)}."
        )
    return x, target
