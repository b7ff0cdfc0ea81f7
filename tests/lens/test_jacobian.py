"""The Jacobian lens against TransformerLens's own fit, and its vectors against what they say they are."""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
import zoo
from transformer_lens.tools.analysis import JacobianLens as Theirs

import workbench as wb
from workbench.lens import LensError, fit_jacobian_lens, jacobian_fit, jacobian_rows
from workbench.lens.jacobian_blocks import Blocks, UnlikeError

TEXTS = [
    "The dog ran to the river, and the cat ran to the house.",
    "A cat.",
    "Once there was a dog that saw a bird in the tree by the old house.",
]
SKIP, CONTEXT = 3, 12
HOW = {"skip": SKIP, "context": CONTEXT}


def opened(name: str, **changes) -> wb.model.LanguageModel:
    return wb.load_model(zoo.build(name, **changes), tokenizer=tiny.tokenizer())


def theirs(model: wb.model.LanguageModel, texts=TEXTS) -> torch.Tensor:
    """`[layers, d_model, d_model]` by TransformerLens."""
    bridge = model.network.bridge
    bridge.cfg.model_name = "tiny"
    bridge.to_tokens = model.to_tokens  # the bridge's own asks for padding, which tiny tokenizers lack
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lens = Theirs.fit(
            bridge, texts, corpus="c", max_seq_len=CONTEXT, skip_first_positions=SKIP, show_progress=False, dim_batch=16
        )
    return torch.stack([lens.jacobians[layer] for layer in lens.source_layers])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma2"])
def test_the_lens_is_that_of_transformerlens(name):
    model = opened(name)
    lens = fit_jacobian_lens(model, TEXTS, **HOW)
    torch.testing.assert_close(lens.weight, theirs(model), rtol=1e-4, atol=1e-4)
    assert lens.about.layers == tuple(range(model.network.n_layers - 1))


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2"])
def test_blocks_by_hand_are_autograds(name):
    model = opened(name)
    tokens = model.to_tokens(TEXTS[2])[:, :CONTEXT]
    byhand = Blocks(model, tokens, SKIP).jacobians(tokens, lambda: None)
    general = jacobian_rows.jacobians(model, tokens, SKIP, lambda: None)
    torch.testing.assert_close(byhand, general, rtol=1e-4, atol=1e-5)
