"""A model's pass over one prompt with attention patterns and norm scales frozen: a linear residual stream.

A vector that reads the stream (a latent's encoder row, a direction of the LM head) is pulled back through the frozen
model to every place that writes into the stream. Its dot product with the vector written there is that source's share.
Dunefsky, Chlenski and Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944,
appendix D.

For one layer, with `x` the stream and ' marking constants of the prompt:

    stream after attention = x + sum over heads A'[dst, src] (norm1(x) W_V + b_V) W_O + b_O
    norm(x) = s' * gain * centre(x) + bias
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.attribution.errors import AttributionError
from workbench.dictionaries.coder import SparseCoder
from workbench.model.language_model import LanguageModel

CLOSE = 2e-3
"""The largest relative difference between the frozen model's tensors and the model's own."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with its scale on the prompt as a constant: `scale * gain * centre(x) + bias`."""

    gain: Tensor
    """`[d_model]`."""
    bias: Tensor
    """`[d_model]`."""
    centres: bool
    """Whether the mean is subtracted."""
    scale: Tensor
    """`[pos]`."""

    @classmethod
    def of(cls, model: LanguageModel, name: str, x: Tensor, output: Tensor) -> FrozenNorm:
        """The norm at a hook point `….hook_out`, from its input and output `[pos, d_model]` on the prompt."""
        gain, bias, centres = model.network.norm_weights(name)
        centred = (x - x.mean(-1, keepdim=True) if centres else x) * gain
        scale = (centred * (output - bias)).sum(-1) / centred.square().sum(-1).clamp(min=1e-30)
        norm = cls(gain, bias, centres, scale)
        _check(norm.apply(x), output, f"the norm at {name}")
        return norm

    def apply(self, x: Tensor) -> Tensor:
        """The norm's output for a stream `[..., pos, d_model]`, with the prompt's scale."""
        centred = x - x.mean(-1, keepdim=True) if self.centres else x
        return self.scale[:, None] * (centred * self.gain) + self.bias

    def reader(self, vectors: Tensor) -> Tensor:
        """The vectors `[..., d_model]` that read the stream as `vectors` read the norm's output, without the scale."""
        vectors = vectors * self.gain
        return vectors - vectors.mean(-1, keepdim=True) if self.centres else vectors

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient at the input, from a gradient at the output `[n, pos, d_model]` of the first positions."""
        return self.reader(gradient) * self.scale[: gradient.shape[1], None]


@dataclass(frozen=True)
class FrozenLayer:
    """One block; `past` is the linear path around the latents of its MLP."""

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
    """Whether the MLP reads the stream before attention writes into it."""
    past: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """From a gradient at the MLP's output `[n, pos, d_model]` to one at its normed input, along linear paths only."""

    def attention_back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at the stream, from one at attention's output `[n, pos, d_model]`, and biases' share `[n]`."""
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
        """The same through the MLP; None where no linear path passes it."""
        if self.past is None:
            return None
        normed = self.past(gradient)
        return self.mlp_norm.back(normed), normed.sum(1) @ self.mlp_norm.bias


@dataclass(frozen=True)
class FrozenModel:
    """A model on one prompt with attention patterns and norm scales as constants."""

    tokens: Tensor
    """`[pos]`."""
    layers: list[FrozenLayer]
    final: FrozenNorm
    entering: Tensor
    """The input of block 0, `[pos, d_model]`: token embeddings, plus position embeddings where the model has them."""
    read: list[Tensor]
    """The normed input of each MLP: `[pos, d_model]`."""
    written: list[Tensor]
    """The output of each MLP: `[pos, d_model]`."""
    ending: Tensor
    """The final norm's output: `[pos, d_model]`."""

    def norm(self, layer: int) -> FrozenNorm:
        """The norm in front of readers in a layer: the MLP's; the final norm where `layer` is the number of layers."""
        return self.final if layer == len(self.layers) else self.layers[layer].mlp_norm

    def pull_back(
        self,
        readers: Tensor,
        layers: Sequence[int],
        positions: Sequence[int],
        visit: Callable[[int, Tensor, Tensor], None],
    ) -> Tensor:
        """Pull readers of the normed stream back to all places that write into it.

        Args:
            readers: vectors `[n, d_model]`.
            layers: for each reader the layer whose MLP input it reads; the number of layers for the final norm's
                output.
            positions: for each reader its position.
            visit: called with a layer, rows `[m]` and their gradients `[m, pos, d_model]` at that MLP's output, from
                the last layer to the first, then with -1 for the input of block 0. Rows without a share are left out,
                and so are positions after the last one that any row reads.

        Returns:
            The share of all biases `[n]`, without the readers' own constants.
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
    """Run the model once on a prompt and return its frozen pass.

    Args:
        model: the model.
        tokens: `[1, pos]`.
        transcoders: by layer; gradients take the linear path of a transcoder that has one.
        first: the first position where transcoders replace the MLP's output.
        linear_from: from this layer on, gradients pass an MLP without a transcoder by its Jacobian on the prompt.

    Raises:
        AttributionError: the model lacks a hook point, or a block is not the linear map that its hook points imply.
    """
    count = model.network.n_layers
    per_layer = ("ln1.hook_in", "ln1.hook_out", "attn.hook_pattern", "hook_attn_out")
    per_layer += ("ln2.hook_in", "ln2.hook_out", "mlp.hook_in", "hook_mlp_out")
    names = [f"blocks.{layer}.{name}" for layer in range(count) for name in per_layer]
    missing = [name for name in [*names, "ln_final.hook_out"] if name not in model.hook_points]
    if missing:
        raise AttributionError(f"Features can't be attributed in {model.name}: it has no hook point {missing[0]}.")
    captured = model.capture(tokens, [*names, "ln_final.hook_in", "ln_final.hook_out"])
    seen = {name: value[0].float() for name, value in captured.items()}
    layers = []
    for layer in range(count):
        stream, normed, pattern, attended, middle, read, entered, written = (
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
            FrozenNorm.of(model, f"blocks.{layer}.ln1.hook_out", stream, normed),
            FrozenNorm.of(model, f"blocks.{layer}.ln2.hook_out", middle, read),
            pattern,
            *model.network.attention_weights(layer),
            parallel,
            past,
        )
        after = seen["ln_final.hook_in"] if layer == count - 1 else seen[f"blocks.{layer + 1}.ln1.hook_in"]
        _check(stream if parallel else stream + attended, middle, f"block {layer} up to its MLP")
        _check(stream + attended + written, after, f"block {layer}")
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
    """Attention's output `[pos, d_model]` from its normed input, with the frozen pattern."""
    value = torch.einsum("sd,kdh->ksh", normed, block.value) + block.value_bias[:, None]
    value = value.repeat_interleave(len(block.out) // len(block.value), 0)  # [heads, src, d_head]
    return torch.einsum("htd,hdm->tm", block.pattern @ value, block.out) + block.out_bias


def _skip(transcoder: SparseCoder, first: int) -> Callable[[Tensor], Tensor] | None:
    """The pull-back along a transcoder's linear path, from the first position where the transcoder is used."""
    if transcoder.W_skip is None:
        return None
    weight = transcoder.W_skip.detach()

    def back(gradient: Tensor) -> Tensor:
        normed = gradient @ weight
        normed[:, :first] = 0
        return normed

    return back


def _jacobian(model: LanguageModel, layer: int, entered: Tensor) -> Callable[[Tensor], Tensor]:
    """The pull-back by an MLP's Jacobian at its input on the prompt, `[pos, d_model]`."""
    path = model.hook_points[f"blocks.{layer}.hook_mlp_out"].module
    if path is None:
        raise AttributionError(f"MLP {layer} of {model.name} is no module of its own; use mlps='frozen'.")
    mlp = model.network.module.get_submodule(path)

    def back(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            x = entered[: gradient.shape[1]].expand_as(gradient).clone().requires_grad_()
            return torch.autograd.grad(mlp(x), x, gradient)[0]

    return back


def _check(computed: Tensor, captured: Tensor, what: str) -> None:
    """Raise `AttributionError` where a computed tensor differs from the one captured in the model."""
    least = 1e-6 * captured.abs().max()
    if not bool(((computed - captured).norm(dim=-1) <= CLOSE * captured.norm(dim=-1) + least).all()):
        raise AttributionError(f"Features can't be attributed in this model: {what} is not the linear map expected.")
