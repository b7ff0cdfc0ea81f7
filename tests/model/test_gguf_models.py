"""Tiny models in GGUF files against the plain models that they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ggufs
import pytest
import tiny
import torch
import zoo
from torch import Tensor, nn

import workbench as wb

LINEAR = {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
LINEAR["full_attention"] = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0}  # type: ignore[dict-item]

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with a head": ("llama", {"tie_word_embeddings": False}),
    "llama with biases": ("llama-biased", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2moe": ("qwen2-moe", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3moe": ("qwen3-moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {"num_hidden_layers": 7}),
    "gemma3 with a long context": ("gemma3", {"num_hidden_layers": 7, "rope_parameters": LINEAR}),
    "gpt2": ("gpt2", {}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3 in part": ("phi3", {"partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {}),
    "stablelm in parallel": ("stablelm-parallel", {"qk_layernorm": False}),
    "nemotron": ("nemotron", {}),
}
"""Entries of the zoo, and what differs from them."""
TOKENS = torch.tensor([[5, 17, 200, 41, 41, 7, 300, 12, 9, 150, 33, 2, 77, 101, 64, 250]])


def source(name: str) -> nn.Module:
    """The plain model of an entry."""
    entry, changes = SOURCES[name]
    return zoo.build(entry, **changes)


def logits(module: nn.Module) -> Tensor:
    """What a plain model writes."""
    with torch.no_grad():
        return module(TOKENS).logits


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_the_model_that_it_was_converted_from(name: str, tmp_path: Path) -> None:
    plain = source(name)
    path = ggufs.write(tmp_path / "model.gguf", plain, tiny.tokenizer())
    module = wb.load_model(path).network.module
    assert type(module).__name__ in (type(plain).__name__, "LlamaForCausalLM")
    assert torch.allclose(logits(module), logits(plain), rtol=0, atol=1e-5)
