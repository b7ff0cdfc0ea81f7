"""The methods of merging: one tensor of each model becomes one tensor.

Linear: Wortsman et al., "Model soups" (2022), arXiv 2203.05482. Task arithmetic: Ilharco et al. (2022), arXiv
2212.04089. TIES: Yadav et al. (2023), arXiv 2306.01708. DARE: Yu et al. (2023), arXiv 2311.03099. SLERP: Shoemake,
"Animating Rotation with Quaternion Curves" (1985). Parameters, types and order of sums are those of mergekit 0.1.5, so
that results are equal to the bit on the same version of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.surgery.child_building import SurgeryError
from workbench.surgery.merging.settings import Parameter

PIECE = 1 << 20
"""Numbers of a tensor that SLERP computes with at once."""
PARALLEL = 0.9995
"""Cosine from which on SLERP interpolates linearly."""
SMALL = 1e-7
"""Sum of absolute values below which a delta is not rescaled."""
DELTAS = {
    "weight": Parameter("other"),
    "density": Parameter("other", 1.0, low=0.0, high=1.0),
    "lambda": Parameter("merge", 1.0),
    "int8_mask": Parameter("merge", False, "yes"),
}


@dataclass
class Draws:
    """Random numbers of a merge, and how many numbers of its deltas stayed."""

    chance: torch.Generator
    kept: int = 0
    total: int = 0

    def count(self, mask: Tensor) -> None:
        """Add the numbers of a mask."""
        self.kept += int(mask.count_nonzero())
        self.total += mask.numel()


@dataclass(frozen=True)
class Part:
    """The tensor of one model, with the model's own values of the parameters."""

    tensor: Tensor
    is_base: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


Merge = Callable[[Sequence[Part], Mapping[str, Any], Draws], Tensor]
"""Merges parts of one type, with the parameters of all."""


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Attributes:
        name: as recipes have it.
        parameters: by name.
        merge: the function.
        needs_base: whether one of the models is the base.
        models: the fewest and the most models that it merges.
    """

    name: str
    parameters: Mapping[str, Parameter]
    merge: Merge
    needs_base: bool = False
    models: tuple[int, float] = (1, float("inf"))

    def check_inputs(self, models: Sequence[str], base: str | None, where: str) -> None:
        """Refuse models that it can't merge.

        Raises:
            SurgeryError: too few or too many, one of them twice, or no base where one is needed.
        """
        twice = next((one for one in models if models.count(one) > 1), None)
        if twice is not None:
            raise SurgeryError(f"{where} has the model {twice!r} twice; name each once.")
        if self.needs_base and base not in models:
            raise SurgeryError(
                f"{self.name} needs a base_model that is among the models of {where}."
                if base
                else f"{self.name} needs a base_model in the recipe."
            )
        least, most = self.models
        if not least <= len(models) <= most:
            number = f"{least}" if least == most else f"at most {most:g}"
            raise SurgeryError(f"{self.name} takes {number} model{'s' * (most != 1)}, and {where} has {len(models)}.")


def linear(parts: Sequence[Part], shared: Mapping[str, Any], draws: Draws) -> Tensor:
    """Σ weight · tensor, over Σ weight where it is normalised; summed in float32."""
    first = parts[0].tensor
    kind = torch.promote_types(first.dtype, torch.float32)
    weights = torch.tensor([one.settings["weight"] for one in parts], dtype=kind)
    total = torch.zeros_like(first, dtype=kind)
    for part, weight in zip(parts, weights, strict=True):
        total.addcmul_(part.tensor, weight)
    if shared["normalize"]:
        whole = weights[None].sum(dim=1)[0]
        if not whole:
            raise SurgeryError("The weights of a tensor sum to 0 and can't be normalised; set normalize: false.")
        total.div_(whole)
    return total.to(first.dtype)


def slerp(parts: Sequence[Part], shared: Mapping[str, Any], draws: Draws) -> Tensor:
    """The tensor at `t` of the way from the base to the other, along the arc between their directions.

    Vectors that are nearly parallel are interpolated linearly.
    """
    base, other = sorted(parts, key=lambda one: not one.is_base)
    start, end = base.tensor.reshape(-1), other.tensor.reshape(-1)
    kind = torch.promote_types(start.dtype, torch.float32)
    t = torch.tensor([shared["t"]], dtype=kind)
    if not start.numel():
        return base.tensor
    lengths = [_length(one.split(PIECE), kind) for one in (start, end)]
    cosine = torch.stack(
        [
            ((a.to(kind) / lengths[0]) * (b.to(kind) / lengths[1])).sum(dim=0, keepdim=True)
            for a, b in zip(start.split(PIECE), end.split(PIECE), strict=True)
        ]
    )
    cosine = cosine.sum(dim=0).clamp(-1, 1)
    if float(cosine.abs()) > PARALLEL:
        from_start, from_end = 1 - t, t
    else:
        angle = torch.acos(cosine)
        from_start, from_end = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    merged = torch.empty_like(start)
    for a, b, out in zip(start.split(PIECE), end.split(PIECE), merged.split(PIECE), strict=True):
        out.copy_(from_start * a.to(kind) + from_end * b.to(kind))
    return merged.reshape(base.tensor.shape)


def _length(pieces: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """The norm of a vector in pieces `[1]`; 1 where it is 0."""
    norms = torch.stack([torch.linalg.vector_norm(one.to(kind), dim=0, keepdim=True) for one in pieces])
    norm = torch.linalg.vector_norm(norms, dim=0)
    return torch.where(norm > 1e-8, norm, 1)


def passthrough(parts: Sequence[Part], shared: Mapping[str, Any], draws: Draws) -> Tensor:
    """The tensor itself, times `scale` where there is one."""
    scale = parts[0].settings["scale"]
    return parts[0].tensor if scale is None else parts[0].tensor * scale


def _of_deltas(thin: Literal["largest", "drawn"] | None, *, elect: bool) -> Merge:
    """base + lambda · Σ weight · delta, with deltas thinned out, and with signs elected as in TIES."""

    def merge(parts: Sequence[Part], shared: Mapping[str, Any], draws: Draws) -> Tensor:
        base = next(one.tensor for one in parts if one.is_base)
        others = [one for one in parts if not one.is_base]
        if not others:
            return base
        deltas = base.new_empty((len(others), *base.shape))
        for row, other in zip(deltas, others, strict=True):
            delta = other.tensor - base
            if thin:
                delta = thinned(delta, other.settings["density"], thin, draws, rescale=shared["rescale"])
            row.copy_(delta)
        weights = torch.tensor([one.settings["weight"] for one in others], dtype=deltas.dtype)
        weights = weights.reshape(-1, *[1] * base.ndim)
        deltas.mul_(weights)
        if elect:
            agree = deltas.sign() == torch.where(deltas.sum(dim=0) >= 0, 1, -1)
            mixed, whole = (deltas * agree).sum(dim=0), (weights * agree).sum(dim=0)
            whole[whole == 0] = 1
        else:
            mixed, whole = deltas.sum(dim=0), weights.sum(dim=0)
            whole[whole.abs() < 1e-8] = 1
        if shared["normalize"]:
            mixed /= whole
        if shared["lambda"] != 1:
            mixed *= shared["lambda"]
        return (base + mixed).to(base.dtype)

    return merge


def thinned(
    delta: Tensor, density: float, which: Literal["largest", "drawn"], draws: Draws, *, rescale: bool
) -> Tensor:
    """A delta of which a share of the numbers stays and the others are 0.

    Args:
        delta: it stays as it is.
        density: the share; at 1 nothing is drawn.
        which: the largest stay, at least one of them; or each number stays with this probability.
        draws: the random numbers; they count what stays.
        rescale: multiply what stays so that the sum of absolute values is that of the whole delta.
    """
    if density >= 1:
        draws.count(torch.ones_like(delta, dtype=torch.bool))
        return delta
    if which == "drawn":
        kind = delta.dtype if delta.dtype == torch.bfloat16 else torch.float32
        mask = torch.bernoulli(torch.full_like(delta, density, dtype=kind), generator=draws.chance)
        wide = delta.to(kind)
    else:
        wide, mask = delta, torch.zeros(delta.numel(), dtype=delta.dtype)
        if density > 0 and delta.numel():
            size = delta.abs().reshape(-1).float()
            mask[torch.argsort(size, descending=True)[: max(1, int(density * delta.numel()))]] = 1
        mask = mask.reshape_as(delta)
    draws.count(mask)
    stays = wide * mask
    if rescale:
        before, after = wide.abs().sum(), stays.abs().sum()
        if before >= SMALL and after >= SMALL:
            stays = stays * (before / after)
    return stays.to(delta.dtype)


def _deltas(name: str, thin: Literal["largest", "drawn"] | None, elect: bool, normalize: bool, rescale: bool) -> Method:
    own = {
        "normalize": Parameter("merge", normalize, "yes"),
        "rescale": Parameter("merge", rescale, "yes"),
    }
    return Method(name, DELTAS | own, _of_deltas(thin, elect=elect), needs_base=True)


METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method("linear", {"weight": Parameter("model"), "normalize": Parameter("merge", True, "yes")}, linear),
        Method("slerp", {"t": Parameter("merge")}, slerp, needs_base=True, models=(2, 2)),
        _deltas("ties", "largest", elect=True, normalize=True, rescale=False),
        _deltas("dare_ties", "drawn", elect=True, normalize=False, rescale=True),
        _deltas("dare_linear", "drawn", elect=False, normalize=False, rescale=True),
        _deltas("task_arithmetic", None, elect=False, normalize=False, rescale=False),
        Method("passthrough", {"scale": Parameter("model", free=True)}, passthrough, models=(1, 1)),
    )
}
"""Every method by its name."""
