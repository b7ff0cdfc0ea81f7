"""What blocks compute on a prompt and hold as weights, as far as gradients by hand take them; else a refusal.

What a hook point carries is compared with what its name lets one expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from workbench.core.precision import in_float64
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.mlp import linear_shape
from workbench.model.modules import is_conv1d

CLOSE = 1e-4
"""The largest difference from what the model itself computes, as a share of the largest value."""
NORMS = ("ln1.hook_out", "ln2.hook_out")
TURNED = ("hook_rot_q", "hook_rot_k")
NEEDED = (
    "hook_resid_pre",
    "hook_resid_mid",
    "mlp.hook_pre",
    "mlp.hook_post",
    *NORMS,
    *(f"attn.{one}" for one in ("hook_q", "hook_k", "hook_v", "hook_z", "hook_pattern")),
)
"""Hook points of a block that are read, and those that are read where there are some."""
OPTIONAL = ("mlp.hook_pre_linear", *(f"attn.{one}" for one in TURNED))


class UnlikeError(Exception):
    """A block is not of the kind that is computed here."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a block, with the gains of the norms in front, less the mean where they subtract it."""

    up: Tensor
    """`[d_mlp, d_model]`."""
    gate: Tensor | None
    down: Tensor
    """`[d_model, d_mlp]`."""
    query: Tensor
    """`[heads, d_head, d_model]`."""
    key: Tensor
    """`[kv_heads * d_head, d_model]`."""
    key_turned: Tensor
    """The same, each pair of coordinates a quarter turn further."""
    value: Tensor
    out: Tensor
    """`[d_model, heads * d_head]`."""
    centres: tuple[bool, bool]
    norms: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Gain and bias of the norm in front of attention, and in front of the MLP."""


@dataclass(frozen=True, eq=False)
class Local:
    """A block on a prompt, at the positions that count, `[n, ...]` each."""

    neurons: tuple[Tensor, Tensor]
    """The slope of each neuron's output along up and along gate, `[n, d_mlp, 1]`."""
    centred: tuple[Tensor, Tensor]
    """What the norms scale, `[n, d_model]`."""
    scales: tuple[list[float], list[float]]
    pattern: Tensor
    """`[kv_heads, group * n, n]`: from queries to keys."""
    reads: Tensor
    """The slope of each score along what the head writes, `[kv_heads, group * n, n, d_head]`."""
    queries: Tensor
    """`[kv_heads, group * n, d_head]`."""
    local: Tensor
    """What a head writes to its own query, through its scores: `[n, heads, d_head, d_head]`."""
    turns: tuple[Tensor, Tensor]
    """Cosines and sines of the keys' rotation, `[n, kv_heads * d_head, 1]`."""


def read_weights(model: LanguageModel, layer: int) -> Weights:
    """The weights of a block; raises `UnlikeError` where they are no matrices of their own."""
    norms, centres = [], []
    for name in NORMS:
        gain, bias, centred = model.network.norm_weights(f"blocks.{layer}.{name}")
        norms.append((gain, bias))
        centres.append(centred)

    def reading(weight: Tensor, norm: int) -> Tensor:
        folded = weight * norms[norm][0]
        return (folded - folded.mean(-1, keepdim=True) if centres[norm] else folded).contiguous()

    query, key, value = (reading(_matrix(model, f"blocks.{layer}.attn.hook_{one}", "out"), 0) for one in "qkv")
    heads, d_head = model.hook_points[f"blocks.{layer}.attn.hook_z"].shape
    gated = f"blocks.{layer}.mlp.hook_pre_linear" in model.hook_points
    return Weights(
        reading(model.network.neuron_weights(layer, "up"), 1),
        reading(model.network.neuron_weights(layer, "gate"), 1) if gated else None,
        model.network.neuron_weights(layer, "down").T.contiguous(),
        query.view(heads, d_head, -1),
        key,
        _quarter(key.view(-1, d_head, key.shape[1]), 1).flatten(0, 1),
        value,
        _matrix(model, f"blocks.{layer}.attn.hook_z", "in"),
        (centres[0], centres[1]),
        (norms[0], norms[1]),
    )


def _matrix(model: LanguageModel, name: str, side: str) -> Tensor:
    """The weight `[out, in]` of the linear map whose input or output a hook point is."""
    point, d_model = model.hook_points[name], model.network.d_model
    module: Any = model.network.module.get_submodule(point.module) if point.module else None
    sizes = (point.width, d_model) if side == "in" else (d_model, point.width)
    if point.side != side or linear_shape(module) != sizes:
        raise UnlikeError(f"{name} is no linear map of its own")
    weight = module.weight.detach().float()
    return weight.T.contiguous() if is_conv1d(module) else weight


def _scaled(stream: Tensor, normed: Tensor, norm: tuple[Tensor, Tensor], centres: bool) -> tuple[Tensor, Tensor]:
    """What a norm scales, `[pos, d_model]`, and its scales `[pos]`."""
    centred = stream - stream.mean(-1, keepdim=True) if centres else stream
    weighted = centred * norm[0]
    scales = ((normed - norm[1]) * weighted).sum(-1) / weighted.square().sum(-1).clamp(min=1e-30)
    check_close(scales[:, None] * weighted + norm[1], normed, "a norm does not read the stream")
    return centred, scales


def local_of(weights: Weights, own: dict[str, Tensor], first: int, act: nn.Module) -> Local:
    """A block on a prompt, from what was captured of it."""
    at = slice(first, None)
    centred, scales = zip(
        *(
            _scaled(own[f"hook_resid_{word}"], own[name], norm, centres)
            for word, name, norm, centres in zip(("pre", "mid"), NORMS, weights.norms, weights.centres, strict=True)
        ),
        strict=True,
    )
    neurons = _neurons(own, first, act)
    value, pattern = own["attn.hook_v"], own["attn.hook_pattern"]  # [pos, kv, d_head], [heads, pos, pos]
    heads, kv_heads = pattern.shape[0], value.shape[1]
    group, n, d_head = heads // kv_heads, pattern.shape[1] - first, value.shape[2]
    query, key = own["attn.hook_q"], own["attn.hook_k"]
    turned = [own.get(f"attn.{one}", plain) for one, plain in zip(TURNED, (query, key), strict=True)]
    cosines, sines = _rotation(torch.cat([query, key], 1), torch.cat(turned, 1))
    queries, keys = (one.transpose(0, 1) for one in turned)  # [heads, pos, d_head]
    repeated = keys.repeat_interleave(group, 0)
    scale = d_head**-0.5
    scores = (queries @ repeated.transpose(1, 2) * scale).masked_fill(pattern == 0, -torch.inf)
    check_close(scores.softmax(-1), pattern, "the pattern is another function of queries and keys")
    values = value.transpose(0, 1).repeat_interleave(group, 0)
    made = pattern @ values
    check_close(made.transpose(0, 1), own["attn.hook_z"], "heads write something else")
    weighted = scale * pattern[:, at, :, None] * (values[:, None] - made[:, at, None])  # [heads, n, pos, d_head]
    local = torch.einsum("hnsd,hse->nhde", weighted, repeated)
    back = _turn(local, cosines[at, None, None], -sines[at, None, None])
    return Local(
        neurons,
        (centred[0][at], centred[1][at]),
        (scales[0][at].tolist(), scales[1][at].tolist()),
        pattern[:, at, at].reshape(kv_heads, group * n, n).contiguous(),
        weighted[:, :, at].reshape(kv_heads, group * n, n, d_head).contiguous(),
        queries[:, at].reshape(kv_heads, group * n, d_head).contiguous(),
        back.contiguous(),
        (
            cosines[at].repeat(1, kv_heads)[..., None].contiguous(),
            sines[at].repeat(1, kv_heads)[..., None].contiguous(),
        ),
    )


def _neurons(own: dict[str, Tensor], first: int, act: nn.Module) -> tuple[Tensor, Tensor]:
    """The slopes of the neurons' outputs along up and along gate, `[n, d_mlp, 1]`."""
    gated = "mlp.hook_pre_linear" in own
    entered, out = own["mlp.hook_pre"], own["mlp.hook_post"]
    times = own["mlp.hook_pre_linear"] if gated else None
    with taking_gradients():
        x = entered.clone().requires_grad_()
        y = act(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    y = y.detach()
    check_close(y if times is None else y * times, out, "the neurons compute something else")
    along_up, along_gate = (slope, slope) if times is None else (y, times * slope)
    at = slice(first, None)
    return along_up[at, :, None].contiguous(), along_gate[at, :, None].contiguous()


def _quarter(x: Tensor, axis: int = -1) -> Tensor:
    """Each pair of coordinates, half the axis apart, a quarter turn further."""
    one, other = x.chunk(2, axis)
    return torch.cat([-other, one], axis)


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return x * cosines + _quarter(x) * sines


def _rotation(plain: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[pos, d_head]` of the rotation between `[pos, heads, d_head]` before and after it."""
    one, other = in_float64(plain).chunk(2, -1)
    first, second = in_float64(turned).chunk(2, -1)
    length = (one.square() + other.square()).sum(1).clamp(min=1e-30)
    cosines = ((one * first + other * second).sum(1) / length).repeat(1, 2)
    sines = ((one * second - other * first).sum(1) / length).repeat(1, 2)
    cosines, sines = (one.to(plain.dtype).to(plain.device) for one in (cosines, sines))
    check_close(_turn(plain, cosines[:, None], sines[:, None]), turned, "queries are turned in another way")
    return cosines, sines


def activation_of(own: dict[str, Tensor]) -> nn.Module:
    """The activation of the neurons among those that transformers has: the one that fits best."""
    entered, times, out = own["mlp.hook_pre"], own.get("mlp.hook_pre_linear"), own["mlp.hook_post"]
    best, least = None, torch.inf
    for name in dict.fromkeys(ACT2FN):
        act = ACT2FN[name]
        if not isinstance(act, nn.Module) or [*act.parameters()]:
            continue
        with torch.no_grad():
            made = act(entered) if times is None else act(entered) * times
        apart = float((made - out).abs().max()) if made.shape == out.shape else torch.inf
        if apart < least:
            best, least = act, apart
    if best is None:
        raise UnlikeError("no activation fits")
    return best


def check_close(computed: Tensor, captured: Tensor, complaint: str) -> None:
    if computed.shape != captured.shape or not float((computed - captured).abs().max()) <= CLOSE * float(
        captured.abs().max()
    ):
        raise UnlikeError(complaint)
