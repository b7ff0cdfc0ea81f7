"""Transcoders with random weights, and a prompt, for the tests of attribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import workbench as wb

PROMPT = torch.tensor([5, 17, 40, 8, 99, 200, 31])

SKIPPED = (wb.dictionaries.TopKSkipTranscoder, wb.dictionaries.JumpReLUSkipTranscoder)


def coder(
    layer: int, kind: Any = wb.dictionaries.TopKTranscoder, d_model: int = 32, width: int = 24, **how: Any
) -> Any:
    """A transcoder with random weights, biases too, and active latents."""
    made = kind(d_model, width, **how)
    chance = torch.Generator().manual_seed(100 + layer)
    for tensor in (made.b_enc, made.b_dec):
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=chance))
    made.W_enc_T.copy_(0.5 * torch.randn(made.W_enc_T.shape, generator=chance))
    if made.W_skip is not None:
        made.W_skip.copy_(0.2 * torch.randn(made.W_skip.shape, generator=chance))
    made.reads, made.writes = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"
    made.name = f"t{layer}"
    return made


def coders(model: wb.model.LanguageModel, kind: Any = wb.dictionaries.TopKTranscoder, layers: Any = None) -> list[Any]:
    """One for each layer."""
    how = {"k": 5} if "TopK" in kind.__name__ else {}
    return [coder(layer, kind, **how) for layer in (range(model.network.n_layers) if layers is None else layers)]


def norms(module: nn.Module) -> list[nn.Module]:
    """All norms of a plain model."""
    return [one for path, one in module.named_modules() if "norm" in path.rsplit(".", 1)[-1] or ".ln_" in f".{path}"]
