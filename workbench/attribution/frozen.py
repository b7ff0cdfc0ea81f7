"""A model's pass over one prompt with attention patterns and norm scales frozen: a linear residual stream.

A vector that reads the stream (a latent's encoder row, a direction of the LM head) is pulled back through the frozen
model to every place that writes into the stream. Its dot product with the vector written there is that source's share.
Dunefsky, Chlenski and Nanda, "Transcoders find interpretable LLM feature circuits" (2024), arXiv 2406.11944,
appendix D.

For one layer, with `x` the stream and ' marking constants of the prompt:

    stream after attention = x + behind(sum over heads A'[dst, src] (norm1(x) W_V + b_V) W_O + b_O)
    norm(x) = s' * gain * centre(x) + bias

`behind` is a norm of the same form where the model has one behind attention, a factor, or nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.attribution.blocks import FrozenBlock, names_of, read_block
from workbench.attribution.errors import AttributionError
from workbench.attribution.norms import FrozenNorm, close
from workbench.attribution.parts import Part
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.modules import through


@dataclass(frozen=True)
class FrozenModel:
    """A model on one prompt with attention patterns and norm scales as constants."""

    tokens: Tensor
    """`[pos]`."""
    layers: list[FrozenBlock]
    final: FrozenNorm
    entering: Tensor
    """The input of block 0, `[pos, d_model]`: token embeddings, plus position embeddings where the model has them."""
    read: list[Tensor]
    """The input of each MLP, behind a norm in front of it, or what its transcoder reads: `[pos, d_model]`."""
    written: list[Tensor]
    """The output of each MLP at the block's `writes`: `[pos, d_model]`."""
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
            visit: called with a layer, rows `[m]` and their gradients `[m, pos, d_model]` where that block's MLP
                `writes`, from the last layer to the first, then with -1 for the input of block 0. Rows without a share
                are left out, and so are positions after the last one that any row reads.

        Returns:
            The share of all biases `[n]`, without the readers' own constants.
        """
        order = sorted(range(len(layers)), key=lambda row: -layers[row])
        rows = torch.tensor(order, device=readers.device)
        readers = readers[rows]
        heights, places = [layers[row] for row in order], [positions[row] for row in order]
        length = max(places) + 1
        gradient = readers.new_zeros(len(order), length, readers.shape[1])
        bias = readers.new_zeros(len(order))
        for layer in range(max(heights), -1, -1):
            here = slice(sum(one > layer for one in heights), sum(one >= layer for one in heights))
            norm, above = self.norm(layer), slice(0, here.start)
            at = rows.new_tensor(range(here.start, here.stop)), rows.new_tensor(places[here])
            new = norm.reader(readers[here]) * norm.scale[at[1], None]
            bias[here] += readers[here] @ norm.bias
            if layer == len(self.layers):
                gradient[at] = new
                continue
            block = self.layers[layer]
            now = gradient[above]
            reads = now.clone() if block.parallel else gradient[: here.stop]
            if len(now):
                written, share = block.written_back(now)
                bias[above] += share
                visit(layer, rows[above], written)
                passed = block.mlp_back(written)
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
    transcoders: Mapping[int, Part],
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
        AttributionError: a block, or what follows the last one, is not the linear map expected.
    """
    layers = range(model.network.n_layers)
    names = [name for layer in layers for name in names_of(model, layer)]
    names += [name for one in transcoders.values() for name in (one.reads, one.writes)]
    names += ["ln_final.hook_in", "ln_final.hook_out"]
    seen = {name: value[0].float() for name, value in model.capture(tokens, names).items()}
    blocks = []
    for layer in layers:
        transcoder, entered = transcoders.get(layer), seen[f"blocks.{layer}.mlp.hook_in"]
        block = read_block(model, layer, seen, None if transcoder is None else transcoder.writes)
        if transcoder is not None:
            read, norm = seen[transcoder.reads], block.mlp_norm
            if norm.at and torch.equal(read, seen[f"{norm.at}.hook_in"]):
                block = replace(block, mlp_norm=FrozenNorm.factor(read))  # it reads the stream itself
            elif not torch.equal(read, entered):
                raise AttributionError(
                    f"{transcoder.name} reads {transcoder.reads}, which is not what MLP {layer} of {model.name} reads; "
                    f"train it at blocks.{layer}.mlp.hook_in."
                )
            block = replace(block, past=_skip(transcoder, first))
        elif layer >= linear_from:
            block = replace(block, past=_jacobian(model, layer, entered, seen[block.writes]))
        blocks.append(block)
        after = "ln_final.hook_in" if layer == layers[-1] else f"blocks.{layer + 1}.hook_resid_pre"
        if not close(seen[f"blocks.{layer}.hook_resid_post"], seen[after]):
            raise AttributionError(
                f"Features can't be attributed in {model.name}: the stream changes between block {layer} and what "
                "follows it."
            )
    return FrozenModel(
        tokens[0],
        blocks,
        FrozenNorm.of(model, "ln_final", seen["ln_final.hook_in"], seen["ln_final.hook_out"]),
        seen["blocks.0.hook_resid_pre"],
        [seen[transcoders[layer].reads if layer in transcoders else f"blocks.{layer}.mlp.hook_in"] for layer in layers],
        [seen[block.writes] for block in blocks],
        seen["ln_final.hook_out"],
    )


def mlp_at(model: LanguageModel, layer: int) -> Callable[[Tensor], Tensor]:
    """The MLP of a layer as a function of its input `[n, pos, d_model]`.

    Raises:
        AttributionError: the MLP is no module of its own.
    """
    path = model.hook_points[f"blocks.{layer}.mlp.hook_in"].module
    if path is None:
        raise AttributionError(f"MLP {layer} of {model.name} is no module of its own; use mlps='frozen'.")
    module = model.network.module.get_submodule(path)
    wanted = [one for one in inspect.signature(module.forward).parameters.values() if one.default is one.empty]
    others = sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in wanted) - 1

    def mlp(x: Tensor) -> Tensor:
        # BLOOM and MPT add the stream inside; an MLP of experts may return its router's logits too
        return through(module, x, *[torch.zeros_like(x)] * others)

    return mlp


def along(function: Callable[[Tensor], Tensor], x: Tensor, change: Tensor) -> Tensor:
    """A function's Jacobian at `x` times a change of `x`."""
    try:
        return torch.func.jvp(function, (x,), (change,))[1]
    except RuntimeError:  # products of experts and BLOOM's activation have none; the pull-back's derivative is the same
        with taking_gradients():
            moved: Any = torch.autograd.functional.jvp(function, x, change)[1]
            return moved.detach()


def _skip(transcoder: Part, first: int) -> Callable[[Tensor], Tensor] | None:
    """The pull-back along a transcoder's linear path, from the first position where the transcoder is used."""
    weight = transcoder.skip
    if weight is None:
        return None

    def back(gradient: Tensor) -> Tensor:
        normed = gradient @ weight
        normed[:, :first] = 0
        return normed

    return back


def _jacobian(model: LanguageModel, layer: int, entered: Tensor, written: Tensor) -> Callable[[Tensor], Tensor]:
    """The pull-back by an MLP's Jacobian at its input on the prompt, `[pos, d_model]`."""
    mlp = mlp_at(model, layer)
    if not close(mlp(entered[None])[0], written):
        raise AttributionError(
            f"MLP {layer} of {model.name} computes something else when it is called by itself; use mlps='frozen'."
        )

    def back(gradient: Tensor) -> Tensor:
        with taking_gradients():
            x = entered[: gradient.shape[1]].expand_as(gradient).clone().requires_grad_()
            return torch.autograd.grad(mlp(x), x, gradient)[0]

    return back
