"""Attention against plain transformers' own, and heads whose behaviour is set by hand."""

from __future__ import annotations

import pytest
import tiny
import torch
import zoo
from test_read_lens import IDS

import workbench as wb
from workbench.lens import LensError, read_attention, score_heads


@pytest.mark.parametrize("name", zoo.sample(2, always=("llama", "gemma2"), without=zoo.UNOPENED))
def test_patterns_are_transformers_own(name):
    module = zoo.build(name)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    with torch.no_grad():
        theirs = module(input_ids=IDS[None], output_attentions=True).attentions
    if "blocks.0.attn.hook_pattern" not in model.hook_points:
        with pytest.raises(LensError, match="can't be read"):
            read_attention(model, IDS)
        return
    ours = read_attention(model, IDS)
    assert ours.patterns.shape == (model.network.n_layers, model.network.n_heads, len(IDS), len(IDS))
    for layer, pattern in enumerate(theirs):
        torch.testing.assert_close(ours.patterns[layer], pattern[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_what_is_written_is_the_change_when_the_key_is_taken_out(name):
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    layer, head, query = 1, 2, 6
    written = read_attention(model, IDS, weighted="written", layers=[layer]).head(layer, head)
    z = model.capture(IDS, [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.attn.hook_v"])
    pattern = read_attention(model, IDS, layers=[layer]).head(layer, head)
    x = z[f"blocks.{layer}.attn.hook_z"][0, query]  # [heads, d_head]
    values = z[f"blocks.{layer}.attn.hook_v"][0]
    share = model.network.n_heads // values.shape[1]
    path = model.network.into_stream(model.hook_points[f"blocks.{layer}.attn.hook_z"])
    for key in range(query + 1):
        part = torch.zeros_like(x)
        part[head] = pattern[query, key] * values[key, head // share]
        change = path.output(part.flatten()) - path.output(torch.zeros_like(part).flatten())
        expected = path.directions(change).norm() * (1 if path.norm is None else path.scales(x.flatten()).abs())
        torch.testing.assert_close(written[query, key], expected.squeeze(), rtol=1e-3, atol=1e-5)


def test_heads_set_by_hand_have_a_score_of_one():
    truth = wb.circuits.induction_model(seed=3)
    names = [int(truth.model.to_tokens(name, start=False)[0, 0]) for name in ("Ann", "Bob", "Cat", "Dan", "Eve", "Fay")]
    scores = score_heads(truth.model, length=6, tokens=names)
    before, induct = map(tuple, truth.heads.nonzero().tolist())
    assert float(scores.previous[before]) > 0.999
    assert float(scores.induction[induct]) > 0.999
    assert float(scores.duplicate.max()) < 0.9
    others = scores.induction.clone()
    others[induct] = 0
    assert float(others.max()) < 0.9


def test_wrong_requests_are_one_sentence():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(LensError, match="layers 0 to 2"):
        read_attention(model, IDS, layers=[9])
    with pytest.raises(LensError, match="weighted"):
        read_attention(model, IDS, weighted="norm")
    with pytest.raises(LensError, match="fewer than length"):
        score_heads(model, tokens=[1, 2, 3])
    with pytest.raises(LensError, match="context"):
        score_heads(model, length=200)
    with pytest.raises(LensError, match=r"no head 1\.9"):
        read_attention(model, IDS).head(1, 9)
