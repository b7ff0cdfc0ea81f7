"""How encoder-decoder dictionaries learn: starting values, the loss and its gradients, reviving dead latents.

The gradients are written out by hand, so that nothing but the encoder's product is dense where codes are sparse. With
pre-activations p = (x - b_dec) W_enc + b_enc, values v, reconstruction y and g = dL/dy:

    dL/dv_j = g · W_dec[j]        dL/dW_dec[j] = Σ v_j g        dL/dW_enc[:, j] = Σ dL/dp_j (x - b_dec)
    dL/db_enc[j] = Σ dL/dp_j      dL/db_dec = Σ g - W_enc dL/db_enc

each sum running over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.core.precision import in_float64
from workbench.dictionaries.activations import Activation
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.prefixes import prefixes
from workbench.dictionaries.trainable import Step
from workbench.dictionaries.variance import SAME, squares, unexplained

SAMPLE = 4096
"""Rows of the sample on which the encoder's size is set."""


class Coder(Protocol):
    """What these functions need of a dictionary with an encoder and a decoder; see `SparseCoder`."""

    d_in: int
    d_out: int
    centred: bool
    unit_in: float
    unit_out: float
    initialised: bool
    measured: bool
    activation: Activation
    W_enc_T: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    @property
    def prefixes(self) -> Sequence[int]:
        """How many of the first latents reconstruct alone beside the whole; see `prefixes.prefixes`."""
        ...

    @property
    def name(self) -> str:
        """What it is called in error messages."""
        ...

    @property
    def W_enc(self) -> Tensor:
        """`[d_in, width]`, a view of `W_enc_T`."""
        ...

    def centre(self, x: Tensor) -> Tensor:
        """The input of the encoder's product: `[..., d_in]`."""
        ...

    def pre_activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the encoder's product `[batch, d_in]`, and the pre-activations `[batch, width]`."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """Activations at `writes` `[n, d_out]` from those at `reads` `[n, d_in]`."""
        ...


@torch.no_grad()
def loss_and_gradients(coder: Coder, x: Tensor, target: Tensor | None, dead: Tensor | None, sparsity: float) -> Step:
    """See `Trainable.loss_and_gradients`."""
    own = target is None
    source = x.to(coder.W_enc.dtype)
    target = source if target is None else target.to(source.dtype)
    _check(coder, source, target)
    centred, pre = coder.pre_activations(source)  # [batch, d_in], [batch, width]
    spread = centred if own and coder.centred else target - coder.b_dec  # [batch, d_out]
    square = coder.unit_out**2 * len(x)

    entries = coder.activation.entries(pre, coder.unit_out)
    error = entries.decode(coder.W_dec).sub_(spread)  # [batch, d_out]
    if coder.W_skip is not None:
        error += source @ coder.W_skip.T
    squared = squares(error)
    g = error.mul_(2 / square)

    products = entries.products(g, coder.W_dec)
    first = prefixes(coder.prefixes, entries, coder.W_dec, spread, square)
    for prefix in first:
        products[prefix.mask] += prefix.entries.products(prefix.gradient, coder.W_dec)
    lengthening = entries.value_sums(products)  # what each direction's gradient would change of its norm: [width]
    slopes, penalty = coder.activation.backward(entries, products, coder.unit_out, sparsity)
    set_gradient(coder.b_enc, entries.per_latent(slopes))
    entries.outer(entries.values, g, out=gradient_of(coder.W_dec))
    for prefix in first:
        prefix.add_to_decoder(gradient_of(coder.W_dec))
    remove_parallel(gradient_of(coder.W_dec), coder.W_dec, lengthening)
    entries.outer(slopes, centred, out=gradient_of(coder.W_enc_T))
    auxiliary = sum(prefix.loss for prefix in first)
    if dead is not None and coder.activation.auxiliary and bool(dead.any()):
        auxiliary += _auxiliary(coder, pre, centred, g, dead=dead, square=square)
    set_gradient(coder.b_dec, sum((prefix.gradient.sum(0) for prefix in first), g.sum(0)))
    if coder.centred:
        gradient_of(coder.b_dec).sub_(coder.W_enc @ gradient_of(coder.b_enc))
    if coder.W_skip is not None:
        set_gradient(coder.W_skip, g.T @ source)

    fired = entries.fired()
    return Step(
        loss=squared / square + penalty + auxiliary,
        error=squared / square,
        penalty=penalty,
        auxiliary=auxiliary,
        fvu=unexplained(squared, spread, coder.b_dec),
        l0=int(fired.sum()) / len(x),
        fired=fired,
    )


def _auxiliary(coder: Coder, pre: Tensor, centred: Tensor, g: Tensor, *, dead: Tensor, square: float) -> float:
    """AuxK of Gao et al. 2024: the strongest dead latents reconstruct what the living ones leave over.

    As in SAELens, k_aux is half the width of the activations (the paper's choice), pre-activations count without the
    ReLU, and the loss shrinks where fewer latents than k_aux are dead. Adds to the gradients that are there; returns
    the loss.
    """
    index = dead.nonzero()[:, 0]  # [dead]
    k = max(1, coder.d_in // 2)
    values = pre[:, index]  # [batch, dead]
    if len(index) > k:
        lowest = values.topk(k, sorted=False).values.amin(1, keepdim=True)
        values = torch.where(values >= lowest, values, 0)
    directions = coder.W_dec[index]  # [dead, d_out]
    over = torch.addmm(g, values, directions, beta=square / 2)  # what is left over is -g * square / 2
    weight = coder.activation.auxiliary * min(1.0, len(index) / k) / square
    slope = over * (2 * weight)
    slopes = (slope @ directions.T) * (values != 0)  # [batch, dead]
    gradient = values.T @ slope  # [dead, d_out]
    remove_parallel(gradient, directions)
    gradient_of(coder.W_dec).index_add_(0, index, gradient)
    gradient_of(coder.W_enc_T).index_add_(0, index, slopes.T @ centred)
    gradient_of(coder.b_enc).index_add_(0, index, slopes.sum(0))
    return weight * squares(over)


def remove_parallel(gradient: Tensor, weights: Tensor, along: Tensor | None = None) -> None:
    """Take from the gradient of unit rows `[n, d]` what would only change the rows' norm (Gao et al. 2024).

    `along` is each row's product with its gradient `[n]`, where that is known already.
    """
    known: Tensor = torch.linalg.vecdot(gradient, weights) if along is None else along
    gradient.addcmul_(known[:, None], weights, value=-1)


@torch.no_grad()
def initialise(coder: Coder, x: Tensor, target: Tensor | None) -> None:
    """See `SparseCoder.initialise`."""
    x = x.to(coder.W_enc.dtype)
    own = target is None
    target = x if target is None else target.to(x.dtype)
    _check(coder, x, target)
    middle = geometric_median(target)  # [d_out]
    coder.unit_out = unit_of(target, middle)
    coder.b_dec.copy_(middle)
    coder.b_enc.zero_()
    if coder.centred:
        coder.unit_in = coder.unit_out
    else:
        source = middle if own else geometric_median(x)
        coder.unit_in = unit_of(x, source)
        coder.W_enc.mul_(coder.unit_out / coder.unit_in)
        coder.b_enc.sub_(source @ coder.W_enc)
    coder.activation.initialise(coder.unit_out)
    entries = coder.activation.entries(torch.addmm(coder.b_enc, coder.centre(x[:SAMPLE]), coder.W_enc), coder.unit_out)
    coder.activation.initialise(coder.unit_out)
    output, wanted = entries.decode(coder.W_dec), target[:SAMPLE] - middle  # [sample, d_out]
    if coder.centred:  # the best factor, by least squares
        factor = float((output * wanted).sum()) / max(squares(output), 1e-30)
    else:  # the directions are random, so that there is no best one
        factor = (squares(wanted) / max(squares(output), 1e-30)) ** 0.5 / 4
    if factor > 0:
        coder.W_enc.mul_(factor)
        coder.b_enc.mul_(factor)
    coder.initialised = coder.measured = True


@torch.no_grad()
def adopt(coder: Coder, x: Tensor, target: Tensor | None) -> None:
    """See `Trainable.adopt`: n = |W_dec[j]| moves into W_enc[:, j], b_enc[j] and the activation function."""
    x = x.to(coder.W_enc.dtype)
    own = target is None
    target = x if target is None else target.to(x.dtype)
    _check(coder, x, target)
    middle = geometric_median(target)
    unit_out = unit_of(target, middle)
    if not coder.measured:
        coder.unit_out = unit_out
        coder.unit_in = unit_out if own or coder.centred else unit_of(x, geometric_median(x))
    norms = coder.W_dec.norm(dim=1)  # [width]
    norms = torch.where(norms > 0, norms, 1)
    coder.activation.scale(norms)
    coder.W_dec.div_(norms[:, None])
    coder.W_enc_T.mul_(norms[:, None])
    coder.b_enc.mul_(norms)
    coder.measured = True


def geometric_median(points: Tensor, steps: int = 32) -> Tensor:
    """The point with the least sum of distances to the points `[n, d]`, by Weiszfeld's algorithm: `[d]`."""
    middle = points.mean(0)
    for _ in range(steps):
        weights = 1 / (points - middle).norm(dim=1).clamp(min=1e-12)  # [n]
        before, middle = middle, weights @ points / weights.sum()
        if float((middle - before).norm()) <= 1e-6 * float(middle.norm()):
            break
    return middle


def unit_of(points: Tensor, middle: Tensor) -> float:
    """Mean distance from the middle, per square root of a dimension.

    Raises:
        DictionaryError: values that are not finite, or points that differ by rounding errors only.
    """
    distance = float((points - middle).norm(dim=1).mean())
    size = float(points.norm(dim=1).mean())
    if not size < float("inf"):
        raise DictionaryError("The sample of activations holds values that are not finite numbers.")
    exact = in_float64(points)  # a mean in 32 bits is off by more than the points may be
    if float((exact - exact.mean(0)).norm(dim=1).mean()) <= SAME * size:
        raise DictionaryError("The sample of activations holds one and the same activation only.")
    return distance / points.shape[1] ** 0.5


@torch.no_grad()
def resample(
    coder: Coder,
    x: Tensor,
    dead: Tensor,
    target: Tensor | None,
    *,
    optimiser: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
) -> int:
    """Neuron resampling of Bricken et al. 2023: dead latents take over activations that are reconstructed badly.

    Rows are drawn with a probability that grows with their squared loss. The decoder row becomes the direction of the
    row's target, the encoder column that of its input with a fifth of the living columns' mean norm, the bias 0.

    Args:
        coder: whose latents.
        x: activations at `reads`, `[n, d_in]`.
        dead: which latents, bool `[width]`.
        target: activations at `writes`, `[n, d_out]`; None where these are the same.
        optimiser: whose moments of the revived latents are set to zero.
        generator: of the draw, on the processor.

    Returns:
        How many were revived.
    """
    index = dead.nonzero()[:, 0]  # [dead]
    x = x.to(coder.W_enc.dtype)
    target = x if target is None else target.to(x.dtype)
    _check(coder, x, target)
    if not len(index):
        return 0
    loss = (coder.reconstruct(x) - target).square().sum(1)  # [n]
    weights = ((loss / loss.max().clamp(min=1e-30)).square() + 1e-12).cpu()  # the same draws on every device
    drawn = torch.multinomial(weights, len(index), replacement=len(index) > len(x), generator=generator).to(x.device)
    alive = coder.W_enc_T[~dead].norm(dim=1)
    size = 0.2 * float(alive.mean()) if len(alive) else 1.0
    inputs = x[drawn] - (coder.b_dec if coder.centred else x.mean(0))  # [dead, d_in]
    columns = normalize(inputs, dim=1) * size
    coder.W_enc_T[index] = columns
    coder.W_dec[index] = normalize(target[drawn] - coder.b_dec, dim=1)
    coder.b_enc[index] = 0.0 if coder.centred else -(columns @ x.mean(0))
    coder.activation.forget(index, coder.unit_out)
    for parameter in (coder.W_enc_T, coder.W_dec, coder.b_enc, *coder.activation.parameters()):
        for moment in optimiser.state.get(parameter, {}).values() if optimiser else ():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                moment.index_fill_(0, index, 0)
    return len(index)


def _check(coder: Coder, x: Tensor, target: Tensor) -> None:
    """Refuse batches of another form than training needs."""
    if x.shape[1:] != (coder.d_in,) or target.shape != (len(x), coder.d_out) or not len(x):
        raise DictionaryError(
            f"{coder.name} learns from activations [batch, {coder.d_in}] and targets [batch, {coder.d_out}], "
            f"not {list(x.shape)} and {list(target.shape)}."
        )


def set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Put a gradient in place of the one that is there."""
    gradient_of(parameter).copy_(gradient)


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient that is there, or memory for one."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
