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
from workbench.lens.jacobian_blocks import Blocks
from workbench.lens.jacobian_reading import UnlikeError

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


@pytest.fixture(scope="module")
def model() -> wb.model.LanguageModel:
    return opened("llama")


@pytest.fixture(scope="module")
def lens(model):
    return fit_jacobian_lens(model, TEXTS, **HOW)


def test_other_architectures_take_the_general_way(model):
    tokens = model.to_tokens(TEXTS[0])[:, :CONTEXT]
    for name in ("gemma2", "gpt-neox", "qwen3", "mixtral"):
        with pytest.raises(UnlikeError):
            Blocks(opened(name), tokens, SKIP)


def test_in_16_bits_it_is_that_of_the_same_weights_in_float32():
    narrow = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer(), dtype="bfloat16")
    module = zoo.build("llama")
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16().float()
    wide = wb.load_model(module, tokenizer=tiny.tokenizer())
    weights = [fit_jacobian_lens(one, TEXTS, **HOW).weight for one in (narrow, wide)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_in_parts_and_by_the_general_way_as_at_once(model, lens, monkeypatch):
    monkeypatch.setattr("workbench.lens.jacobian_blocks.VALUES", 1)
    parts = fit_jacobian_lens(model, TEXTS, **HOW)
    torch.testing.assert_close(parts.weight, lens.weight, rtol=1e-4, atol=1e-5)

    def never(*_):
        raise UnlikeError("as a test")

    monkeypatch.setattr(jacobian_fit, "Blocks", never)
    monkeypatch.setattr(jacobian_rows, "VALUES", 1)
    rows = fit_jacobian_lens(model, TEXTS[:1], **HOW)
    torch.testing.assert_close(rows.weight, fit_jacobian_lens(model, TEXTS[:1], **HOW).weight, rtol=1e-4, atol=1e-5)


def test_it_stops_and_goes_on_to_the_same_bits(model, lens, tmp_path):
    file = tmp_path / "sums.safetensors"
    some = fit_jacobian_lens(model, TEXTS, **HOW, prompts=1, checkpoint=file)
    asked = iter([False] * 2 + [True] * 100)
    with pytest.raises(LensError, match="stopped"):
        fit_jacobian_lens(model, TEXTS, **HOW, cancel=lambda: True)
    part = fit_jacobian_lens(model, TEXTS, **HOW, checkpoint=file, cancel=lambda: next(asked))
    assert (some.about.fitted_on["prompts"], part.about.fitted_on["prompts"]) == (1, 1)
    whole = fit_jacobian_lens(model, TEXTS, **HOW, checkpoint=file)
    assert torch.equal(whole.weight, lens.weight)
    assert whole.about == lens.about
    with pytest.raises(LensError, match="another fit, which differs in skip"):
        fit_jacobian_lens(model, TEXTS, context=CONTEXT, skip=2, checkpoint=file)


def test_files_of_transformerlens_are_read_and_written(model, lens, tmp_path):
    lens.save(tmp_path / "ours.pt", format="jacobian-lens", half=True)
    read = Theirs.load(str(tmp_path / "ours.pt"))
    assert (read.n_prompts, read.source_layers) == (2, list(lens.about.layers))
    torch.testing.assert_close(torch.stack([*read.jacobians.values()]), lens.weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(wb.lens.load_lens(tmp_path / "ours.pt", model).weight, lens.half().weight)
    Theirs(read.jacobians, n_prompts=2, d_model=read.d_model).save(str(tmp_path / "lens.pt"))
    again = wb.lens.load_lens(tmp_path, model)
    assert torch.equal(again.weight, lens.half().weight)
    assert again.about.model_hash == model.hash
    sums = {layer: one * 2 for layer, one in zip(lens.about.layers, lens.weight, strict=True)}
    state = {"jacobian_sum": sums, "n_done": 2, "next_idx": 3, "target_layer": len(sums), "skip_first": 3}
    torch.save(state | {"source_layers": [*sums]}, tmp_path / "sums.pt")
    torch.testing.assert_close(wb.lens.load_lens(tmp_path / "sums.pt", model).weight, lens.weight)
    other = wb.load_model(zoo.build("llama", seed=1), tokenizer=tiny.tokenizer())
    for name, words in (("sums.pt", "was not fitted to"), ("ours.pt", "was fitted to")):
        with pytest.raises(LensError, match=words):
            wb.lens.load_lens(tmp_path / name, other)


def test_vectors_are_transformerlens_and_read_what_the_lens_reads(model, lens):
    bridge = model.network.bridge
    bridge.cfg.model_name = "tiny"
    named = dict(zip(lens.about.layers, lens.weight, strict=True))
    them = Theirs(named, n_prompts=2, d_model=lens.d_model)
    torch.testing.assert_close(lens.vectors(model, [5, 9], 1), them.lens_vectors(bridge, [5, 9], 1))
    direction = lens.direction(model, 5, 1)
    stream = model.capture(TEXTS[0], [direction.hook_points[0]])[direction.hook_points[0]][0]
    read = model.network.lm_head.rows([5]) @ lens.transport(1, stream).T
    torch.testing.assert_close(read[0], stream @ direction.vectors[direction.hook_points[0]], rtol=1e-4, atol=1e-4)
    last = model.network.n_layers - 1
    assert torch.equal(lens.transport(last, stream), stream)
    with pytest.raises(LensError, match="not behind"):
        lens.transport(-1, stream)


def test_a_swap_is_transformerlens_swap(model, lens):
    bridge = model.network.bridge
    bridge.cfg.model_name = "tiny"
    named = dict(zip(lens.about.layers, lens.weight, strict=True))
    hooks = Theirs(named, n_prompts=2, d_model=lens.d_model).swap_hooks(bridge, 5, 9, [1], alpha=2.0)
    tokens = model.to_tokens(TEXTS[0])
    with torch.no_grad():
        them = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        with model.intervening(lens.swap(model, 5, 9, [1], 2.0)):
            ours = model(tokens)
    torch.testing.assert_close(ours, them, rtol=1e-3, atol=1e-4)


def test_wrong_requests_are_one_sentence(model, lens, tmp_path):
    file = tmp_path / "other"
    file.write_text("mine")
    for arguments, words in [
        ({"texts": ["A cat."]}, "has more than 4 tokens"),
        ({"checkpoint": file}, "damaged"),
        ({"checkpoint": tmp_path}, "no ordinary file|folder"),
    ]:
        with pytest.raises(LensError, match=words):
            fit_jacobian_lens(model, **({"texts": TEXTS} | HOW | arguments))
    assert file.read_text() == "mine"
    with model.intervening([wb.Clamp("neurons.1.post:7", 3.0)]), pytest.raises(LensError, match="Interventions act"):
        fit_jacobian_lens(model, TEXTS)
    with pytest.raises(wb.model.EditError, match="along one line"):
        wb.interventions.SwapDirections("blocks.1.hook_resid_post", [1.0, 2.0], [2.0, 4.0])
    with pytest.raises(LensError, match="fitted to"):
        wb.read_lens(opened("llama", seed=2), TEXTS[0], lens)
