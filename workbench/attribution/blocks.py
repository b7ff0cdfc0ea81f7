"""One block of a model on one prompt as a linear map of the stream, read from the tensors that the model computes.

Names of hook points are candidates only. What is a norm in front of attention or MLP, what stands behind them, and
whether the MLP reads the stream before or after attention writes into it, follows from the tensors themselves: from
what enters the block, what its parts read and write, and what leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.attribution.heads import FrozenHeads
from workbench.attribution.norms import FrozenNorm, close
from workbench.core.precision import in_float64
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError

PLACES = {
    "hook_resid_pre": "the stream in front of it",
    "hook_resid_post": "the stream behind it",
    "attn.hook_in": "what its attention reads",
    "attn.hook_pattern": "the pattern of its attention",
    "mlp.hook_in": "what its MLP reads",
    "hook_mlp_out": "what its MLP writes",
}
"""The hook points of a block that its map is read from, and what each shows."""
WRITTEN = ("attn.hook_out", "attn.o.hook_out", "mlp.hook_out", "hook_mlp_out")
"""Hook points that may hold what attention (the first two) and the MLP write. Which do, sums and products tell: BLOOM
and MPT add the stream inside the modules, so that these put out the stream itself."""
Places = Mapping[str, tuple[Tensor, Tensor]]
"""Input and output of what may be norms, by their place."""
SAME = 1e-4
"""The largest relative difference between two places that hold one tensor."""


@dataclass(frozen=True)
class FrozenBlock:
    """One block; `past` is the linear path around the latents of its MLP."""

    attention_norm: FrozenNorm
    """In front of attention."""
    mlp_norm: FrozenNorm
    """In front of the MLP."""
    heads: FrozenHeads
    parallel: bool
    """Whether the MLP reads the stream before attention writes into it."""
    attention_behind: FrozenNorm | None
    """Between attention's output and the stream; None where the output is added as it is."""
    mlp_behind: FrozenNorm | None
    """The same between the place where the MLP's output is explained and the stream."""
    writes: str
    """The hook point where the MLP's output is explained."""
    past: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """From a gradient at `writes` `[n, pos, d_model]` to one at the MLP's input, along linear paths only."""

    @property
    def norms(self) -> list[FrozenNorm]:
        """The norms of the block, each once."""
        parts = (self.attention_norm, self.attention_behind, self.mlp_norm, self.mlp_behind)
        return list({one.at: one for one in parts if one is not None and one.at}.values())

    def attention_back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient `[n, pos, d_model]` that the stream gets through attention, and biases' share `[n]`."""
        gradient, behind = _behind(self.attention_behind, gradient)
        normed, bias = self.heads.back(gradient)
        return self.attention_norm.back(normed), behind + bias + normed.sum(1) @ self.attention_norm.bias

    def written_back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at `writes`, from one at the stream, and biases' share `[n]`."""
        return _behind(self.mlp_behind, gradient)

    def mlp_back(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """The gradient that the stream gets through the MLP, from one at `writes`, and biases' share `[n]`; None where
        no linear path passes it."""
        if self.past is None:
            return None
        normed = self.past(gradient)
        return self.mlp_norm.back(normed), normed.sum(1) @ self.mlp_norm.bias


def _behind(norm: FrozenNorm | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
    if norm is None:
        return gradient, gradient.new_zeros(len(gradient))
    return norm.back(gradient), gradient.sum(1) @ norm.bias


def names_of(model: LanguageModel, layer: int) -> list[str]:
    """Every hook point of a block that `read_block` looks at.

    Raises:
        AttributionError: the block does not show one of them.
    """
    for word, what in PLACES.items():
        if f"blocks.{layer}.{word}" not in model.hook_points:
            raise _refusal(model, f"block {layer} does not show {what}")
    norms = [f"{at}.{side}" for at in _norm_places(model, layer) for side in ("hook_in", "hook_out")]
    others = [name for word in WRITTEN if (name := f"blocks.{layer}.{word}") in model.hook_points]
    return [*(f"blocks.{layer}.{word}" for word in PLACES), *others, *norms]


def read_block(model: LanguageModel, layer: int, seen: Mapping[str, Tensor], writes: str | None) -> FrozenBlock:
    """The block as a linear map, checked against what leaves it; without a path past its MLP.

    Args:
        model: the model.
        layer: the block.
        seen: tensors on the prompt by hook point, `[pos, ...]`.
        writes: the hook point where the MLP's output is explained; None for the MLP's own output.

    Raises:
        AttributionError: the block is another map than attention and MLP that each add to the stream.
    """
    before, after, reads, pattern, entered, _ = (seen[f"blocks.{layer}.{word}"] for word in PLACES)
    places = {at: (seen[f"{at}.hook_in"], seen[f"{at}.hook_out"]) for at in _norm_places(model, layer)}
    attention_norm, stream = _in_front(model, places, reads)
    mlp_norm, middle = _in_front(model, places, entered)
    if not close(stream, before, SAME):
        raise _refusal(model, f"the attention of block {layer} reads neither the stream nor a norm of it")
    outputs = [seen[name] for word in WRITTEN[:2] if (name := f"blocks.{layer}.{word}") in seen]
    try:
        read = FrozenHeads.of(model, layer, pattern, reads, outputs)
    except ModelError as error:
        raise _refusal(
            model, f"the attention of block {layer} computes its values in another way than by one matrix for each head"
        ) from error
    if read is None:
        raise _refusal(
            model, f"what the attention of block {layer} writes is not its pattern times a linear map of what it reads"
        )
    heads, attended = read
    parallel = bool(torch.equal(middle, before))
    own = [name for word in WRITTEN[2:] if (name := f"blocks.{layer}.{word}") in seen]
    for name in [writes] if writes else own:
        outputs = [attended, seen[name]]
        norms = [_norm_behind(model, places, one) for one in outputs]
        factors = _factors(
            [one if norm is None else norm.apply(one) for norm, one in zip(norms, outputs, strict=True)],
            before,
            None if parallel else middle,
            after,
        )
        if factors is not None:
            attention, mlp = (_way(model, layer, *pair, before) for pair in zip(norms, factors, strict=True))
            return FrozenBlock(attention_norm, mlp_norm, heads, parallel, attention, mlp, name)
    where = f" at {writes}" if writes else ""
    raise _refusal(
        model, f"what leaves block {layer} is not the stream plus what its attention and its MLP write{where}"
    )


def _refusal(model: LanguageModel, reason: str) -> AttributionError:
    return AttributionError(f"Features can't be attributed in {model.name}: {reason}.")


def _norm_places(model: LanguageModel, layer: int) -> list[str]:
    """The places in a block where a norm may stand: a module with no matrices, as wide as the stream on both sides."""
    points, shape, found = model.hook_points, (model.network.d_model,), []
    for name in points:
        at, _, word = name.rpartition(".")
        if word != "hook_out" or not name.startswith(f"blocks.{layer}."):
            continue
        out, into = points[name], points.get(f"{at}.hook_in")
        if into is None or out.module is None or into.module != out.module or not out.shape == into.shape == shape:
            continue
        module: Any = model.network.module.get_submodule(out.module)
        if all(one.ndim < 2 for one in module.parameters()):
            found.append(at)
    return found


def _in_front(model: LanguageModel, places: Places, read: Tensor) -> tuple[FrozenNorm, Tensor]:
    """The norm whose output a part of the block reads, and its input; without one, what is read itself."""
    for at, (stream, normed) in places.items():
        if torch.equal(normed, read):
            return FrozenNorm.of(model, at, stream, normed), stream
    return FrozenNorm.factor(read), read


def _norm_behind(model: LanguageModel, places: Places, written: Tensor) -> FrozenNorm | None:
    """The norm that reads what a part of the block writes; None if there is none."""
    for at, (stream, normed) in places.items():
        if torch.equal(stream, written):
            return FrozenNorm.of(model, at, written, normed)
    return None


def _factors(outputs: Sequence[Tensor], before: Tensor, middle: Tensor | None, after: Tensor) -> list[float] | None:
    """The factors with which attention's and the MLP's output are added to the stream; None if they don't sum to it.

    `middle` is the stream between them; None where both read the same.
    """
    if middle is None:
        factors = _fit(outputs, after - before, after)
    else:
        factors = [*_fit(outputs[:1], middle - before, middle), *_fit(outputs[1:], after - middle, after)]
    attended, written = (factor * one for factor, one in zip(factors, outputs, strict=True))
    if middle is not None and not close(before + attended, middle):
        return None
    return factors if close(before + attended + written, after) else None


def _fit(outputs: Sequence[Tensor], added: Tensor, stream: Tensor) -> list[float]:
    """The factors of outputs in what is added to a stream; exactly 1 where only rounding speaks against it."""
    rows = in_float64(torch.stack([one.flatten() for one in outputs]))
    found = (torch.linalg.pinv(rows @ rows.T) @ (rows @ in_float64(added.flatten()))).tolist()  # least squares
    sizes = rows.norm(dim=1).clamp(min=1e-30).tolist()
    rounding = 4 * torch.finfo(stream.dtype).eps * float(in_float64(stream).norm())
    return [1.0 if abs(one - 1) < 1e-5 + rounding / size else one for one, size in zip(found, sizes, strict=True)]


def _way(model: LanguageModel, layer: int, norm: FrozenNorm | None, factor: float, like: Tensor) -> FrozenNorm | None:
    """What stands between an output and the stream: a norm, a factor, or nothing."""
    if norm is None:
        return None if factor == 1.0 else FrozenNorm.factor(like, factor)
    if factor != 1.0:
        raise _refusal(
            model, f"behind a norm in block {layer} a factor of {factor:.3g} follows, which isn't known here"
        )
    return norm
