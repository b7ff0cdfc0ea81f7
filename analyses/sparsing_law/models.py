"""Small transformers with gated MLPs, and the activations that learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from analyses.sparsing_law.plan import Plan, Shape


class PolyReLU(nn.Module):
    """A learned polynomial of ReLU(x), of degree 3; its constant begins at 0, the other weights at a third."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3]))

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., d_mlp]` to the same."""
        positive = x.relu()
        constant, first, second, third = self.weights.unbind()
        return constant + positive * (first + positive * (second + positive * third))


class Series(nn.Module):
    """The sum of two SiLUs, each with a learned scale and shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([1.0, 0.5]))
        self.shifts = nn.Parameter(torch.tensor([0.0, -0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., d_mlp]` to the same."""
        parts = zip(self.scales.unbind(), self.shifts.unbind(), strict=True)
        return sum((nn.functional.silu(scale * x + shift) for scale, shift in parts), torch.zeros(()))


LEARNED: dict[str, type[nn.Module]] = {"polyrelu": PolyReLU, "series": Series}


def untrained(activation: str, shape: Shape, plan: Plan, seed: int) -> Any:
    """An untrained Llama of this shape; its MLPs are 8/3 as wide as its residual stream."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=plan.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=8 * shape.d_model // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.d_model // 16,
        max_position_embeddings=plan.context,
        hidden_act="silu" if activation in LEARNED else activation,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        activation=activation,
        architectures=["LlamaForCausalLM"],
    )
    module = LlamaForCausalLM(config)
    if activation in LEARNED:
        for block in module.model.layers:
            block.mlp.act_fn = LEARNED[activation]()
    return module
