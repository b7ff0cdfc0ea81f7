"""A model's pass over one prompt with attention patterns and norm scales frozen, which makes the stream linear.

What reads the stream (a latent's encoder row, a direction of the LM head) is pulled back through the frozen model to
every place that writes into it; the dot product with what is written there is that source's share. Dunefsky, Chlenski
and Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944, appendix D.

For one layer, with `x` the stream and everything marked ' a constant of the prompt:

    stream after attention = x + sum over heads A'[dst, src] (norm1(x) W_V + b_V) W_O + b_O
    norm(x) = s' * gain * centre(x) + bias
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.dictionaries.coder import SparseCoder
from workbench.model.language_model import LanguageModel

CLOSE = 2e-3
"""How far, relative to its size, the frozen model may be from the model itself."""


class AttributionError(WorkbenchError):
    """A prompt, target, transcoder or model that features can't be attributed for."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with the scale that it has on the prompt: `scale * gain * centre(x) + bias`."""

    gain: Tensor
    """`[d_model]`."""
    bias: Tensor
    """`[d_model]`."""
    centres: bool
    """Whether the mean is subtracted."""
    scale: Tensor
    """`[pos]`."""

    @classmethod
    def of(cls, model: LanguageModel, name: str, given: Tensor, made: Tensor) -> FrozenNorm:
        """The norm at a hook point `….hook_out`, from what it was given and made `[pos, d_model]` on the prompt."""
        gain, bias, centres = model.network.norm_weights(name)
        centred = (given - given.mean(-1, keepdim=True) if centres else given) * gain
        scale = (centred * (made - bias)).sum(-1) / centred.square().sum(-1).clamp(min=1e-30)
        norm = cls(gain, bias, centres, scale)
        _check(norm.apply(given), made, f"the norm at {name}")
        return norm

    def apply(self, x: Tensor) -> Tensor:
        """The norm's output for a stream `[..., pos, d_model]`, with the prompt's scale."""
        centred = x - x.mean(-1, keepdim=True) if self.centres else x
        return self.scale[:, None] * (centred * self.gain) + self.bias

    def reader(self, vectors: Tensor) -> Tensor:
        """What reads the stream where `vectors` `[..., d_model]` read the norm's output, but for the scale."""
        vectors = vectors * self.gain
        return vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors

    def back(self, gradient: Tensor) -> Tensor:
        """From a gradient at the output `[n, pos, d_model]`, of the first positions, to one at the input."""
        return self.reader(gradient) * self.scale[: gradient.shape[1], None]


@dataclass(frozen=True)
class FrozenLayer:
    """One block; the linear way past its MLP's latents is `past`."""

    attention_norm: FrozenNorm
    mlp_norm: FrozenNorm
    pattern: Tensor
    """`[heads, dst, src]`."""
    value: Tensor
    """`[kv_heads, d_model, d_head]`."""
    value_bias: Tensor
    out: Tensor
    """`[heads, d_head, d_model]`."""
    out_bias: Tensor
    parallel: bool
    """Whether the MLP reads the stream before attention has written."""
    past: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """From a gradient at the MLP's output `[n, pos, d_model]` to one at its normed input, along what is linear."""

    def attention_back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """From a gradient at attention's output `[n, pos, d_model]` to the stream's, and the share of biases `[n]`."""
        n, length, _ = gradient.shape
        heads, d_head = self.out.shape[:2]
        bias = gradient.sum(1) @ self.out_bias
        z = (gradient @ self.out.flatten(0, 1).T).view(n, length, heads, d_head)
        z = z.permute(2, 1, 0, 3).reshape(heads, length, n * d_head)  # [heads, dst, n * d_head]
        value = self.pattern[:, :length, :length].transpose(1, 2) @ z  # [heads, src, n * d_head]
        value = value.view(len(self.value), -1, length, n, d_head).sum(1)  # [kv_heads, src, n, d_head]
        bias = bias + (value.sum(1) * self.value_bias[:, None]).sum((0, 2))
        value = value.permute(2, 1, 0, 3).reshape(n, length, -1)
        normed = value @ self.value.transpose(1, 2).flatten(0, 1)  # [n, src, d_model]
        return self.attention_norm.back(normed), bias + normed.sum(1) @ self.attention_norm.bias

    def mlp_back(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same through the MLP; None where nothing passes it."""
        if self.past is None:
            return None
        normed = self.past(gradient)
        return self.mlp_norm.back(normed), normed.sum(1) @ self.mlp_norm.bias


@dataclass(frozen=True)
class FrozenModel:
    """A model on one prompt, frozen."""

    tokens: Tensor
    """`[pos]`."""
    layers: list[FrozenLayer]
    final: FrozenNorm
    entering: Tensor
    """What enters block 0, `[pos, d_model]`: token embeddings, with those of positions where the model has some."""
    read: list[Tensor]
    """What each MLP reads, normed: `[pos, d_model]`."""
    written: list[Tensor]
    """What each MLP writes: `[pos, d_model]`."""
    ending: Tensor
    """The final norm's output: `[pos, d_model]`."""

    def norm(self, layer: int) -> FrozenNorm:
        """The norm that what reads in a layer reads through: the MLP's, or behind the last layer the final one."""
        return self.final if layer == len(self.layers) else self.layers[layer].mlp_norm

    def pull_back(
        self,
        readers: Tensor,
        layers: Sequence[int],
        positions: Sequence[int],
        visit: Callable[[int, Tensor, Tensor], None],
    ) -> Tensor:
        """Follow what reads the normed stream back to all that writes into it.

        Args:
            readers: `[n, d_model]`.
            layers: of each, which MLP's input it reads; the number of layers for the final norm's output.
            positions: of each.
            visit: called with a layer, the rows `[m]` and their gradients `[m, pos, d_model]` at that MLP's output,
                from the last layer to the first, then with -1 for what enters block 0. Rows that have no share are left
                out, and so are positions behind the last that any row reads.

        Returns:
            The share of all biases `[n]`, but for those of the readers themselves.
        """
        order = sorted(range(len(layers)), key=lambda row: -layers[row])
        rows = torch.tensor(order)
        readers = readers[rows]
        heights, places = [layers[row] for row in order], [positions[row] for row in order]
        length = max(places) + 1
        gradient = readers.new_zeros(len(order), length, readers.shape[1])
        bias = readers.new_zeros(len(order))
        for layer in range(max(heights), -1, -1):
            here = slice(sum(one > layer for one in heights), sum(one >= layer for one in heights))
            norm, above = self.norm(layer), slice(0, here.start)
            at = torch.arange(here.start, here.stop), torch.tensor(places[here], dtype=torch.long)
            new = norm.reader(readers[here]) * norm.scale[at[1], None]
            bias[here] += readers[here] @ norm.bias
            if layer == len(self.layers):
                gradient[at] = new
                continue
            block = self.layers[layer]
            now = gradient[above]
            reads = now.clone() if block.parallel else gradient[: here.stop]
            if len(now):
                visit(layer, rows[above], now)
                passed = block.mlp_back(now)
                if passed is not None:
                    bias[above] += passed[1]
                    gradient[above] = now + passed[0]
            if not block.parallel:
                gradient[at] = new
            if len(reads):
                passed = block.attention_back(reads)
                bias[: len(reads)] += passed[1]
                gradient[: len(reads)] += passed[0]
            if block.parallel:
                gradient[at] = new
        visit(-1, rows, gradient)
        return torch.empty_like(bias).index_copy_(0, rows, bias)


def freeze(
    model: LanguageModel,
    tokens: Tensor,
    transcoders: Mapping[int, SparseCoder],
    *,
    first: int,
    linear_from: int,
) -> FrozenModel:
    """Run the model once on a prompt and freeze what it did.

    Args:
        model: the model.
        tokens: `[1, pos]`.
        transcoders: by layer; where one has a linear path past its latents, gradients take it.
        first: the first position where transcoders count.
        linear_from: from this layer on, gradients pass an MLP without a transcoder by its Jacobian on the prompt.

    Raises:
        AttributionError: the model is not built as its hook points let expect.
    """
    count = model.network.n_layers
    per_layer = ("ln1.hook_in", "ln1.hook_out", "attn.hook_pattern", "hook_attn_out")
    per_layer += ("ln2.hook_in", "ln2.hook_out", "mlp.hook_in", "hook_mlp_out")
    names = [f"blocks.{layer}.{name}" for layer in range(count) for name in per_layer]
    missing = [name for name in [*names, "ln_final.hook_out"] if name not in model.hook_points]
    if missing:
        raise AttributionError(f"Features can't be attributed in {model.name}: it has no hook point {missing[0]}.")
    found = model.capture(tokens, [*names, "ln_final.hook_in", "ln_final.hook_out"])
    seen = {name: value[0].float() for name, value in found.items()}
    layers = []
    for layer in range(count):
        given, normed, pattern, attended, middle, read, entered, written = (
            seen[f"blocks.{layer}.{name}"] for name in per_layer
        )
        _check(read, entered, f"the norm in front of MLP {layer}")
        past = None
        if layer in transcoders:
            past = _skip(transcoders[layer], first)
        elif layer >= linear_from:
            past = _jacobian(model, layer, entered)
        parallel = f"blocks.{layer}.hook_resid_mid" not in model.hook_points
        block = FrozenLayer(
            FrozenNorm.of(model, f"blocks.{layer}.ln1.hook_out", given, normed),
            FrozenNorm.of(model, f"blocks.{layer}.ln2.hook_out", middle, read),
            pattern,
            *model.network.attention_weights(layer),
            parallel,
            past,
        )
        after = seen["ln_final.hook_in"] if layer == count - 1 else seen[f"blocks.{layer + 1}.ln1.hook_in"]
        _check(given if parallel else given + attended, middle, f"block {layer} up to its MLP")
        _check(given + attended + written, after, f"block {layer}")
        _check(_attend(block, normed), attended, f"attention {layer}")
        layers.append(block)
    final = FrozenNorm.of(model, "ln_final.hook_out", seen["ln_final.hook_in"], seen["ln_final.hook_out"])
    return FrozenModel(
        tokens[0],
        layers,
        final,
        seen["blocks.0.ln1.hook_in"],
        [seen[f"blocks.{layer}.mlp.hook_in"] for layer in range(count)],
        [seen[f"blocks.{layer}.hook_mlp_out"] for layer in range(count)],
        seen["ln_final.hook_out"],
    )


def _attend(block: FrozenLayer, normed: Tensor) -> Tensor:
    """Attention's output `[pos, d_model]` from what it reads, with the frozen pattern."""
    value = torch.einsum("sd,kdh->ksh", normed, block.value) + block.value_bias[:, None]
    value = value.repeat_interleave(len(block.out) // len(block.value), 0)  # [heads, src, d_head]
    return torch.einsum("htd,hdm->tm", block.pattern @ value, block.out) + block.out_bias


def _skip(transcoder: SparseCoder, first: int) -> Callable[[Tensor], Tensor] | None:
    """The way along a transcoder's linear path, from the first position where it counts."""
    if transcoder.W_skip is None:
        return None
    weight = transcoder.W_skip.detach()

    def back(gradient: Tensor) -> Tensor:
        normed = gradient @ weight
        normed[:, :first] = 0
        return normed

    return back


def _jacobian(model: LanguageModel, layer: int, entered: Tensor) -> Callable[[Tensor], Tensor]:
    """The way through an MLP as it is linear around what it read on the prompt, `[pos, d_model]`."""
    path = model.hook_points[f"blocks.{layer}.hook_mlp_out"].module
    if path is None:
        raise AttributionError(f"MLP {layer} of {model.name} is no module of its own; use mlps='frozen'.")
    mlp = model.network.module.get_submodule(path)

    def back(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            x = entered[: gradient.shape[1]].expand_as(gradient).clone().requires_grad_()
            return torch.autograd.grad(mlp(x), x, gradient)[0]

    return back


def _check(made: Tensor, wanted: Tensor, what: str) -> None:
    """Complain if something is not what it was taken for."""
    least = 1e-6 * wanted.abs().max()
    if not bool(((made - wanted).norm(dim=-1) <= CLOSE * wanted.norm(dim=-1) + least).all()):
        raise AttributionError(f"Features can't be attributed in this model: {what} is not the linear map expected.")
