"""A small TokFSM machine, an untrained tiny model of its language, and codebooks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import workbench as wb

MACHINE = wb.synthetic.TokFSM(states=12, edges=3, digits=2, base=4, seed=1)
HEADS, MLP = "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"
HOW: dict[str, Any] = {"batch": 8, "context": 32, "lr": 3e-3, "tokens": 8 * 32 * 12}


@pytest.fixture(scope="module", name="speaker")
def speaker_model(_tiny_cache: Path) -> wb.model.LanguageModel:
    """An untrained tiny model of the language."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=MACHINE.n_vocab,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        bos_token_id=MACHINE.bos,
        eos_token_id=MACHINE.bos,
        architectures=["GPTNeoXForCausalLM"],
    )
    model = wb.load_model(GPTNeoXForCausalLM(config), tokenizer=MACHINE.tokenizer())
    patch.undo()
    return model


def books(**how: Any) -> dict[str, wb.Codebook]:
    return {HEADS: wb.Codebook(16, 20, groups=2, **how), MLP: wb.Codebook(16, 30, k=2, **how)}
