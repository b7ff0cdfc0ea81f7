"""Gradients through a model's blocks by hand, where the blocks are what the sums here take them for.

A block is `mid = x + attention(norm(x))`, `x' = mid + mlp(norm(mid))`: linear maps around softmax attention and around
one layer of neurons, gated or not. At one position the MLP is one matrix on a prompt, its Jacobian, and so is all that
lies between the heads' outputs and the stream. Each costs a product that does not depend on how many gradients pass
it, so that all `d_model` of them pass at once. No name decides: what a hook point carries is compared with what is
computed here, and one random gradient through each block with autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from workbench.lens.jacobian_streams import streams_of
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.mlp import linear_shape
from workbench.model.modules import is_conv1d
from workbench.model.weights import ModelError

CLOSE = 1e-4
"""The largest difference from what the model itself computes, as a share of the largest value."""
VALUES = 1 << 28
"""Values of gradients that are kept at once: 1 GiB in float32."""
MLP = ("mlp.hook_pre", "mlp.hook_post")
NORMS = ("ln1.hook_out", "ln2.hook_out")
ATTENTION = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_pattern")
TURNED = ("hook_rot_q", "hook_rot_k")


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


class Blocks:
    """All blocks of a model but the first.

    Args:
        model: in float32.
        tokens: `[1, pos]`, on which what is computed here is compared with the model.
        first: the first position that counts.

    Raises:
        UnlikeError: a block of another kind.
    """

    def __init__(self, model: LanguageModel, tokens: Tensor, first: int):
        self.model, self.first = model, first
        self.layers = range(1, model.network.n_layers)
        points = model.hook_points
        needed = [*MLP, *NORMS, *(f"attn.{one}" for one in ATTENTION), "hook_resid_pre", "hook_resid_mid"]
        for layer in self.layers:
            missing = next((one for one in needed if f"blocks.{layer}.{one}" not in points), None)
            if missing:
                raise UnlikeError(missing)
        if len({one.device for one in model.network.module.parameters()}) != 1:
            raise UnlikeError("several devices")
        try:
            self.weights = {layer: _weights(model, layer) for layer in self.layers}
        except ModelError as error:
            raise UnlikeError(str(error)) from error
        self.rooms = Rooms()
        self.act: Any = None
        self._check(tokens)

    def read(self, tokens: Tensor) -> dict[int, Local]:
        """The blocks on a prompt `[1, pos]`; raises `UnlikeError` where they compute something else there."""
        rooms: dict[int, Local] = {}
        words = [*MLP, *NORMS, *(f"attn.{one}" for one in ATTENTION), "hook_resid_pre", "hook_resid_mid"]
        optional = ["mlp.hook_pre_linear", *(f"attn.{one}" for one in TURNED)]
        names = [f"blocks.{layer}.{word}" for layer in self.layers for word in [*words, *optional]]
        with torch.no_grad():
            seen = self.model.capture(tokens, [name for name in names if name in self.model.hook_points])
            for layer in self.layers:
                own = {
                    word: seen[name][0].float()
                    for word in [*words, *optional]
                    if (name := f"blocks.{layer}.{word}") in seen
                }
                rooms[layer] = self._local(self.weights[layer], own)
        return rooms

    def jacobians(self, tokens: Tensor, each: Callable[[], None]) -> Tensor:
        """As `jacobian_rows.jacobians`, in as many parts as memory asks for.

        Raises:
            UnlikeError: the blocks compute something else on these tokens.
        """
        blocks = self.read(tokens)
        width, n = self.model.network.d_model, tokens.shape[1] - self.first
        rows = max(1, min(width, VALUES // (n * self._values)))
        parts = [self._back(blocks, start, min(start + rows, width), each) for start in range(0, width, rows)]
        return torch.cat(parts, 1).cpu()

    @property
    def _values(self) -> int:
        """Values kept of each row and position, about."""
        own = self.weights[1]
        return 2 * own.key.shape[1] + 2 * len(own.out.T) + 4 * len(own.key)

    def _back(self, blocks: dict[int, Local], start: int, stop: int, each: Callable[[], None]) -> Tensor:
        """Gradients of coordinates `start` to before `stop` of the last stream, summed over all target positions.

        Returns:
            The mean over source positions at the stream behind each layer but the last, `[layers, rows, d_model]`.
        """
        like = next(iter(blocks.values())).centred[0]
        n, width = like.shape
        gradient, middle = (self.rooms.get(name, (n, stop - start, width), like) for name in ("gradient", "middle"))
        gradient.zero_()
        gradient[:, torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        found = gradient.new_empty(len(self.layers), stop - start, width)
        with torch.no_grad():
            for layer in reversed(self.layers):
                each()
                self._step(self.weights[layer], blocks[layer], gradient, middle)
                torch.mean(gradient, 0, out=found[layer - 1])
        return found

    def _step(self, weights: Weights, block: Local, gradient: Tensor, middle: Tensor) -> None:
        """Take gradients `[n, rows, d_model]` from behind a block to in front of it, in place."""
        self._past_mlp(weights, block, gradient, middle)
        self._past_attention(weights, block, middle, gradient)

    def _past_mlp(self, weights: Weights, block: Local, gradient: Tensor, middle: Tensor) -> None:
        (along_up, along_gate), centred, scales = block.neurons, block.centred[1], block.scales[1]
        between = self.rooms.get("neurons", weights.up.shape, gradient)
        jacobian = self.rooms.get("jacobian", (gradient.shape[2],) * 2, gradient)
        for place in range(len(gradient)):
            torch.mul(weights.up, along_up[place], out=between)
            if weights.gate is not None:
                between.addcmul_(weights.gate, along_gate[place])
            torch.mm(weights.down, between, out=jacobian)
            _past_norm(jacobian, centred[place], scales[place])
            jacobian.diagonal().add_(1.0)
            torch.mm(gradient[place], jacobian, out=middle[place])

    def _past_attention(self, weights: Weights, block: Local, middle: Tensor, gradient: Tensor) -> None:
        n, rows, width = middle.shape
        heads, d_head, _ = weights.query.shape
        kv_heads = len(block.pattern)
        written, shared = heads * d_head, kv_heads * d_head
        parts = self.rooms.get("parts", (n, rows, written + 2 * shared), middle)
        by_head = self.rooms.get("heads", (heads, n, rows, d_head), middle)
        for place in range(n):
            torch.mm(middle[place], weights.out, out=parts[place, :, :written])
            by_head[:, place] = parts[place, :, :written].view(rows, heads, d_head).transpose(0, 1)
        group = heads // kv_heads
        by_group = by_head.view(kv_heads, group * n, rows, d_head)
        slopes = self.rooms.get("slopes", (group * n, n, rows), middle)
        values = self.rooms.get("values", (n, rows * d_head), middle)
        flat = parts.view(n * rows, -1)
        for head in range(kv_heads):
            own = by_group[head]
            at = written + head * d_head
            torch.bmm(block.reads[head], own.transpose(1, 2), out=slopes)
            torch.mm(slopes.view(group * n, -1).T, block.queries[head], out=flat[:, at : at + d_head])
            torch.mm(block.pattern[head].T, own.reshape(group * n, -1), out=values)
            parts[:, :, at + shared : at + shared + d_head] = values.view(n, rows, d_head)
        read = self.rooms.get("read", (written + 2 * shared, width), middle)
        cosines, sines = block.turns
        for place in range(n):
            torch.bmm(block.local[place], weights.query, out=read[:written].view(heads, d_head, width))
            torch.mul(weights.key, cosines[place], out=read[written : written + shared])
            read[written : written + shared].addcmul_(weights.key_turned, sines[place])
            read[written + shared :] = weights.value
            _past_norm(read, block.centred[0][place], block.scales[0][place])
            torch.addmm(middle[place], parts[place], read, out=gradient[place])

    def _local(self, weights: Weights, own: dict[str, Tensor]) -> Local:
        """A block on a prompt, from what was captured of it."""
        at = slice(self.first, None)
        centred, scales = zip(
            *(
                _scaled(own[f"hook_resid_{word}"], own[name], norm, centres)
                for word, name, norm, centres in zip(
                    ("pre", "mid"), NORMS, weights.norms, weights.centres, strict=True
                )
            ),
            strict=True,
        )
        neurons = self._neurons(own)
        value, pattern = own["attn.hook_v"], own["attn.hook_pattern"]  # [pos, kv, d_head], [heads, pos, pos]
        heads, kv_heads = pattern.shape[0], value.shape[1]
        group, n, d_head = heads // kv_heads, pattern.shape[1] - self.first, value.shape[2]
        query, key = own["attn.hook_q"], own["attn.hook_k"]
        turned = [own.get(f"attn.{one}", plain) for one, plain in zip(TURNED, (query, key), strict=True)]
        cosines, sines = _rotation(torch.cat([query, key], 1), torch.cat(turned, 1))
        queries, keys = (one.transpose(0, 1) for one in turned)  # [heads, pos, d_head]
        repeated = keys.repeat_interleave(group, 0)
        scale = d_head**-0.5
        scores = (queries @ repeated.transpose(1, 2) * scale).masked_fill(pattern == 0, -torch.inf)
        _check_close(scores.softmax(-1), pattern, "the pattern is another function of queries and keys")
        values = value.transpose(0, 1).repeat_interleave(group, 0)
        made = pattern @ values
        _check_close(made.transpose(0, 1), own["attn.hook_z"], "heads write something else")
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
            (cosines[at].repeat(1, kv_heads)[..., None].contiguous(), sines[at].repeat(1, kv_heads)[..., None].contiguous()),
        )

    def _neurons(self, own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The slopes of the neurons' outputs along up and along gate, `[n, d_mlp, 1]`."""
        gated = "mlp.hook_pre_linear" in own
        entered, out = own["mlp.hook_pre"], own["mlp.hook_post"]
        times = own["mlp.hook_pre_linear"] if gated else None
        if self.act is None:
            self.act = _activation(entered, times, out)
        with taking_gradients():
            x = entered.clone().requires_grad_()
            y = self.act(x)
            (slope,) = torch.autograd.grad(y.sum(), x)
        y = y.detach()
        _check_close(y if times is None else y * times, out, "the neurons compute something else")
        along_up, along_gate = (slope, slope) if times is None else (y, times * slope)
        at = slice(self.first, None)
        return along_up[at, :, None].contiguous(), along_gate[at, :, None].contiguous()

    def _check(self, tokens: Tensor) -> None:
        """Compare one random gradient through each block with autograd's; raises `UnlikeError`."""
        blocks = self.read(tokens)
        with taking_gradients():
            streams = streams_of(self.model, tokens, apart=True)
        chance = torch.Generator().manual_seed(0)
        for layer in self.layers:
            entered, left = streams[layer - 1].leaf, streams[layer].value
            n = left.shape[1] - self.first
            random = torch.randn(n, 1, left.shape[2], generator=chance).to(left.device)
            ours, middle = random.clone(), torch.empty_like(random)
            with torch.no_grad():
                self._step(self.weights[layer], blocks[layer], ours, middle)
            whole = torch.zeros_like(left)
            whole[0, self.first :] = random[:, 0]
            (theirs,) = torch.autograd.grad(left, entered, whole)
            _check_close(ours[:, 0], theirs[0, self.first :], f"block {layer} has another derivative")


class Rooms:
    """Memory that every block and prompt uses again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape whose values are whatever was there."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept[name] = like.new_empty(size)
        return self._kept[name][:size].view(shape)


def _weights(model: LanguageModel, layer: int) -> Weights:
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


def _scaled(
    stream: Tensor, normed: Tensor, norm: tuple[Tensor, Tensor], centres: bool
) -> tuple[Tensor, Tensor]:
    """What a norm scales, `[pos, d_model]`, and its scales `[pos]`."""
    centred = stream - stream.mean(-1, keepdim=True) if centres else stream
    weighted = centred * norm[0]
    scales = ((normed - norm[1]) * weighted).sum(-1) / weighted.square().sum(-1).clamp(min=1e-30)
    _check_close(scales[:, None] * weighted + norm[1], normed, "a norm does not read the stream")
    return centred, scales


def _past_norm(readers: Tensor, centred: Tensor, scale: float) -> None:
    """Make vectors `[m, d_model]` that read a norm's output read its input, to first order; the gain is in them."""
    readers.addr_(readers @ centred, centred, beta=scale, alpha=-(scale**3) / len(centred))


def _quarter(x: Tensor, axis: int = -1) -> Tensor:
    """Each pair of coordinates, half the axis apart, a quarter turn further."""
    one, other = x.chunk(2, axis)
    return torch.cat([-other, one], axis)


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return x * cosines + _quarter(x) * sines


def _rotation(plain: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[pos, d_head]` of the rotation between `[pos, heads, d_head]` before and after it."""
    one, other = plain.double().chunk(2, -1)
    first, second = turned.double().chunk(2, -1)
    length = (one.square() + other.square()).sum(1).clamp(min=1e-30)
    cosines = ((one * first + other * second).sum(1) / length).repeat(1, 2)
    sines = ((one * second - other * first).sum(1) / length).repeat(1, 2)
    cosines, sines = cosines.to(plain.dtype), sines.to(plain.dtype)
    _check_close(_turn(plain, cosines[:, None], sines[:, None]), turned, "queries are turned in another way")
    return cosines, sines


def _activation(entered: Tensor, times: Tensor | None, out: Tensor) -> nn.Module:
    """The activation of the neurons among those that transformers has: the one that fits best."""
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


def _check_close(computed: Tensor, captured: Tensor, complaint: str) -> None:
    if computed.shape != captured.shape or not float((computed - captured).abs().max()) <= CLOSE * float(
        captured.abs().max()
    ):
        raise UnlikeError(complaint)
