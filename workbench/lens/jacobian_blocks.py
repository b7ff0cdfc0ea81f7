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

import torch
from torch import Tensor, nn

from workbench.lens.jacobian_reading import (
    NEEDED,
    OPTIONAL,
    Local,
    UnlikeError,
    Weights,
    activation_of,
    check_close,
    local_of,
    read_weights,
)
from workbench.lens.jacobian_streams import streams_of
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError

CHECKED = 6
"""Positions of a text at which gradients are compared with autograd's."""
VALUES = 1 << 28
"""Values of gradients that are kept at once: 1 GiB in float32."""


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
        for layer in self.layers:
            missing = next((one for one in NEEDED if f"blocks.{layer}.{one}" not in points), None)
            if missing:
                raise UnlikeError(missing)
        if len({one.device for one in model.network.module.parameters()}) != 1:
            raise UnlikeError("several devices")
        try:
            self.weights = {layer: read_weights(model, layer) for layer in self.layers}
        except ModelError as error:
            raise UnlikeError(str(error)) from error
        self.rooms = Rooms()
        self._act: nn.Module | None = None
        self._check(tokens[:, : first + CHECKED])

    def read(self, tokens: Tensor) -> dict[int, Local]:
        """The blocks on a prompt `[1, pos]`; raises `UnlikeError` where they compute something else there."""
        blocks: dict[int, Local] = {}
        names = [f"blocks.{layer}.{word}" for layer in self.layers for word in (*NEEDED, *OPTIONAL)]
        with torch.no_grad():
            seen = self.model.capture(tokens, [name for name in names if name in self.model.hook_points])
            for layer in self.layers:
                words = [word for word in (*NEEDED, *OPTIONAL) if f"blocks.{layer}.{word}" in seen]
                own = {word: seen[f"blocks.{layer}.{word}"][0].float() for word in words}
                if self._act is None:
                    self._act = activation_of(own)
                blocks[layer] = local_of(self.weights[layer], own, self.first, self._act)
        return blocks

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
            check_close(ours[:, 0], theirs[0, self.first :], f"block {layer} has another derivative")


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


def _past_norm(readers: Tensor, centred: Tensor, scale: float) -> None:
    """Make vectors `[m, d_model]` that read a norm's output read its input, to first order; the gain is in them."""
    readers.addr_(readers @ centred, centred, beta=scale, alpha=-(scale**3) / len(centred))
