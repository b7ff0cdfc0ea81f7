"""The grid of a lens against plain transformers with hooks of the test's own, and against TransformerLens's logit
lens."""

from __future__ import annotations

import pytest
import tiny
import torch
import zoo
from transformer_lens.tools.analysis.logit_lens import logit_readout

import workbench as wb
from workbench.lens import LensError, read_lens, read_lenses, reading
from workbench.lens import readout as kernel

IDS = torch.tensor([5, 9, 11, 30, 7, 2, 40, 3, 77])
PARTS = {  # the layers and the final norm of the plain model
    "llama": ("model.layers", "model.norm"),
    "gpt2": ("transformer.h", "transformer.ln_f"),
    "gpt-neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "gemma2": ("model.layers", "model.norm"),
    "granite": ("model.layers", "model.norm"),
    "cohere": ("model.layers", "model.norm"),
}


def plain_logits(module, name: str) -> torch.Tensor:
    """Logits `[layers, pos, vocab]` of the stream behind each layer: the rest of the model runs on it as it is."""
    layers, norm = (module.get_submodule(path) for path in PARTS[name])
    seen: list[torch.Tensor] = []

    def keep(_, __, out):
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        module(input_ids=IDS[None])
        for hook in hooks:
            hook.remove()
        rows = []
        for stream in list(seen):
            hook = norm.register_forward_pre_hook(lambda _, args, stream=stream: (stream,))
            rows.append(module(input_ids=IDS[None]).logits[0])
            hook.remove()
    return torch.stack(rows)


@pytest.mark.parametrize(
    "name", zoo.sample(1, always=("llama", "gemma2"), without=[n for n in zoo.ZOO if n not in PARTS])
)
def test_each_cell_is_the_plain_models_own_end_on_the_layers_stream(name):
    module = zoo.build(name)
    logs = plain_logits(module, name).double().log_softmax(-1)
    grid = read_lens(wb.load_model(module, tokenizer=tiny.tokenizer()), IDS, top_k=5)
    best = logs.topk(5)
    assert torch.equal(grid.ids, best.indices)
    torch.testing.assert_close(grid.probabilities, best.values.exp().float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grid.entropy, -(logs.exp() * logs).sum(-1).float(), rtol=1e-4, atol=1e-4)
    final = logs[-1]
    torch.testing.assert_close(grid.kl, (final.exp() * (final - logs)).sum(-1).float(), rtol=1e-3, atol=2e-5)
    token = int(best.indices[0, 3, 2])
    assert torch.equal(grid.rank(token), (logs > logs[..., token : token + 1]).sum(-1))
    torch.testing.assert_close(grid.log_probability(token), logs[..., token].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_logits_are_those_of_transformerlens(name):
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    grid = read_lens(model, IDS, top_k=4)
    bridge = model.network.bridge
    _, cache = bridge.run_with_cache(IDS[None])
    for layer in range(model.network.n_layers):
        theirs = logit_readout(bridge, cache[f"blocks.{layer}.hook_out"]).values[0].log_softmax(-1)
        torch.testing.assert_close(grid.probabilities[layer], theirs.topk(4).values.exp(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def model():
    return wb.load_model(zoo.build("gemma2"), tokenizer=tiny.tokenizer())


def test_in_pieces_as_in_one_piece(model, monkeypatch):
    whole = read_lens(model, IDS)
    monkeypatch.setattr(kernel, "POSITIONS", 2)
    parts = read_lens(model, IDS)
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.kl, whole.kl, rtol=1e-4, atol=1e-5)


def test_heads_sum_to_what_attention_adds(model):
    layers, heads = model.network.n_layers, model.network.n_heads
    by_head = read_lens(model, IDS, at="heads")
    added = read_lens(model, IDS, at="attn_out")
    before, between = (read_lens(model, IDS, at=at).streams for at in ("resid_pre", "resid_mid"))
    summed = by_head.streams.view(layers, heads, *by_head.streams.shape[1:]).sum(1)
    torch.testing.assert_close(summed, between - before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(added.streams, between - before, rtol=1e-3, atol=1e-4)
    mlp, after = (read_lens(model, IDS, at=at).streams for at in ("mlp_out", "resid_post"))
    torch.testing.assert_close(mlp, after - between, rtol=1e-3, atol=1e-4)


def test_interventions_act_in_the_run_that_is_read(model):
    edits = [wb.Clamp("neurons.1.post:7", 3.0)]
    plain, edited = read_lens(model, IDS), read_lens(model, IDS, interventions=edits)
    assert torch.equal(edited.ids[0], plain.ids[0])
    assert not torch.allclose(edited.entropy[1], plain.entropy[1])
    with model.intervening(edits):
        within, logits = read_lens(model, IDS), model(IDS)
    assert torch.equal(within.entropy, edited.entropy)
    best = logits[0].log_softmax(-1).topk(10)
    assert torch.equal(edited.ids[-1], best.indices)
    assert float(edited.kl[-1].abs().max()) < 1e-4


def test_in_16_bits_the_last_row_is_the_models_prediction():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer(), dtype="bfloat16")
    grid = read_lens(model, IDS)
    ours = grid.probabilities[-1, :, 0]
    torch.testing.assert_close(ours, model(IDS)[0].float().softmax(-1).max(-1).values, rtol=0.02, atol=1e-3)


def test_tokens_are_texts_beside_their_probabilities(model):
    grid = read_lens(model, "The dog ran", top_k=3, layers=[2])
    assert grid.layers == [2]
    assert [len(cell) for cell in grid.tokens[0]] == [3] * len(grid.prompt)
    assert grid.tokens[0][0] == model.token_texts(grid.ids[0, 0])
    assert "".join(grid.prompt) == "The dog ran"
    assert "3 tokens" in repr(grid)


def test_wrong_requests_are_one_sentence(model):
    for arguments, words in [
        ({"kind": "jacobi"}, "no lens 'jacobi'"),
        ({"at": "stream"}, "resid_post"),
        ({"layers": [7]}, "layers 0 to 2"),
        ({"layers": []}, "at least one"),
        ({"top_k": 0}, "top_k"),
    ]:
        with pytest.raises(LensError, match=words):
            read_lens(model, IDS, **arguments)
    with pytest.raises(wb.WorkbenchError, match=r"empty|no text|nothing"):
        read_lens(model, "")
    with pytest.raises(wb.WorkbenchError, match=r"sees only|context"):
        read_lens(model, torch.ones(tiny.CONTEXT + 1, dtype=torch.long))
    with pytest.raises(LensError, match="one text at a time"):
        read_lens(model, torch.ones(2, 3, dtype=torch.long))
    grid = read_lens(model, IDS)
    with pytest.raises(LensError, match="tokens for this model"):
        grid.rank("The dog ran to")


def test_a_norm_that_is_not_the_models_end_is_refused():
    module = zoo.build("llama")
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    head = model.network.module.lm_head
    head.register_forward_hook(lambda _, __, out: out + torch.linspace(0, 9, out.shape[-1]))
    with pytest.raises(LensError, match="no lens"):
        read_lens(model, IDS)


@pytest.mark.parametrize("at", ["resid_post", "resid_mid", "attn_out", "heads"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_texts_together_are_read_as_each_alone(name, at, monkeypatch):
    monkeypatch.setattr(reading, "TEXTS", 3)
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    texts = [IDS[:4], IDS, IDS[3:5], IDS[:1], IDS[2:]]
    edits = [wb.Clamp("neurons.0.post:3", 4.0, positions=[0])]
    together = read_lenses(model, texts, at=at, top_k=3, interventions=edits)
    for text, one in zip(texts, together, strict=True):
        alone = read_lens(model, text, at=at, top_k=3, interventions=edits)
        assert (one.prompt, one.places, one.prompt_ids.tolist()) == (alone.prompt, alone.places, text.tolist())
        for field in ("probabilities", "entropy", "kl", "streams"):
            torch.testing.assert_close(getattr(one, field), getattr(alone, field), rtol=1e-4, atol=1e-5)
    with pytest.raises(LensError, match="There is no text"):
        read_lenses(model, [])
