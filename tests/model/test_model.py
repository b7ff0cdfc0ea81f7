"""The network: the same logits as the plain model, and hook points that show what TransformerLens shows there."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb

TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88, 7], [9, 270, 15, 42, 42, 101, 6, 330, 27, 3, 4]])
DTYPES = [torch.float32, torch.bfloat16]


def plain_logits(module: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits


@pytest.mark.real
@pytest.mark.parametrize(
    "text",
    [
        "The dog ran to",
        "In 1969 two astronauts walked on the Moon; 12,345 people watched.",
        "def mean(x):\n    return sum(x) / len(x)",
        "Grüße aus Zürich 🐶 — дом",
        " ",
    ],
)
def test_default_logits_equal_plain_hugging_face(model, plain_default, text: str) -> None:
    tokens = model.to_tokens(text)
    assert torch.allclose(model(text), plain_logits(plain_default, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_logits_equal_plain_hugging_face(zoo, name: str) -> None:
    expected = plain_logits(tiny.build(name), TOKENS)
    assert torch.allclose(zoo[name](TOKENS), expected, rtol=0, atol=1e-5)
    assert torch.allclose(zoo[name](TOKENS[0]), expected[:1], rtol=0, atol=1e-5), "one row without batch"
    assert torch.allclose(zoo[name](TOKENS.int().tolist()), expected, rtol=0, atol=1e-5), "a list of rows"


@pytest.mark.parametrize("kind", [torch.bool, torch.long])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_padding_on_either_side_changes_no_row(zoo, name: str, kind: torch.dtype) -> None:
    model, length = zoo[name], TOKENS.shape[1]
    alone = model(TOKENS[1:, :7])[0]
    for places in (slice(0, 7), slice(length - 7, length)):
        tokens, mask = TOKENS.clone(), torch.ones_like(TOKENS, dtype=kind)
        tokens[1], mask[1] = 0, 0
        tokens[1, places], mask[1, places] = TOKENS[1, :7], 1
        found = model(tokens, mask=mask)
        assert torch.allclose(found[1, places], alone, rtol=0, atol=1e-5)
        assert torch.allclose(found[0], model(TOKENS[:1])[0], rtol=0, atol=1e-5)


def test_edits_on_padded_rows_count_from_the_first_real_token(llama) -> None:
    tokens, mask = TOKENS.clone(), torch.ones_like(TOKENS, dtype=torch.bool)
    tokens[1, :4], mask[1, :4] = 0, False
    tokens[1, 4:] = TOKENS[1, :7]
    with llama.intervening([wb.Clamp("neurons.1.gate:7", 9.0, positions=[2])]):
        together = llama(tokens, mask=mask)
        alone = llama(TOKENS[1:, :7])
    assert torch.allclose(together[1, 4:], alone[0], rtol=0, atol=1e-5)
    assert not torch.allclose(alone, llama(TOKENS[1:, :7]), atol=1e-3)


def own_bridge(name: str, seed: int = 0):
    """A TransformerLens bridge of the test's own over the same weights."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = tiny.build(name, seed)
    return build_bridge_from_module(module, type(module).__name__, hf_config=module.config).eval()


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_hook_point_shows_what_transformerlens_shows(zoo, tiny_cache, name: str, seed: int) -> None:
    """Also on other weights than those with which the table of hook points was made."""
    model = zoo[name] if seed == 0 else wb.load_model(tiny.build(name, seed), tokenizer=tiny.tokenizer())
    with torch.no_grad():
        _, expected = own_bridge(name, seed).run_with_cache(TOKENS)
    tensors = {key: value for key, value in expected.items() if isinstance(value, Tensor) and value.is_floating_point()}
    assert set(model.hook_points) == set(tensors)
    plain = [key for key, point in model.hook_points.items() if point.module is not None]
    assert len(plain) > len(tensors) / 2
    found = model.capture(TOKENS, plain)  # runs the plain modules only
    found |= model.capture(TOKENS, list(tensors.keys() - set(plain)))
    for key, value in tensors.items():
        assert found[key].shape == value.shape, key
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-4), key
        if model.hook_points[key].positional:
            assert value.shape == (*TOKENS.shape, *model.hook_points[key].shape), key


@pytest.mark.real
def test_default_hook_points_show_what_transformerlens_shows(model) -> None:
    tokens = model.to_tokens("The dog ran to the river")
    with torch.no_grad():
        _, expected = model.network.bridge.run_with_cache(tokens)
    names = [name for name, point in model.hook_points.items() if point.module is not None and name != "hook_unembed"]
    for name, value in model.capture(tokens, names).items():
        scale = float(expected[name].abs().max())
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-5 * max(scale, 1)), name


@pytest.mark.parametrize("heads", [3, 5, 7])
def test_a_head_axis_is_never_taken_for_positions(tiny_cache, heads: int) -> None:
    plain = tiny.build("llama", num_attention_heads=heads, num_key_value_heads=heads, hidden_size=8 * heads)
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    for part in ("hook_pattern", "hook_attn_scores"):
        assert not model.hook_points[f"blocks.0.attn.{part}"].positional
    assert model.hook_points["blocks.0.attn.hook_z"].positional
    pattern = model.capture(TOKENS, ["blocks.0.attn.hook_pattern"])["blocks.0.attn.hook_pattern"]
    assert pattern.shape == (2, heads, 11, 11)
    assert torch.allclose(pattern.sum(-1), torch.ones(2, heads, 11), atol=1e-5)


def test_captured_residual_stream_adds_up(llama) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, and the LM head on the last norm gives the logits."""
    names = [f"blocks.1.hook_{part}" for part in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
    pre, attn, mid, mlp, post = llama.capture(TOKENS, names).values()
    assert torch.allclose(pre + attn, mid, atol=1e-5)
    assert torch.allclose(mid + mlp, post, atol=1e-5)
    final = llama.capture(TOKENS, ["ln_final.hook_out"])["ln_final.hook_out"]
    assert torch.allclose(final @ llama.network.module.get_output_embeddings().weight.T, llama(TOKENS), atol=1e-4)


def test_capture_gives_all_positions_even_at_the_lm_head(llama) -> None:
    found = llama.capture(TOKENS, ["unembed.hook_in", "hook_unembed"])
    assert found["unembed.hook_in"].shape == (2, 11, 32)
    assert torch.allclose(found["hook_unembed"], llama(TOKENS), atol=1e-5)


def test_capture_sees_interventions_in_force_and_keeps_none(llama) -> None:
    name = "blocks.1.mlp.hook_pre"
    plain = llama.capture(TOKENS, [name])[name]
    with llama.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]):
        edited = llama.capture(TOKENS, [name])[name]
    assert (edited[..., 7] == 9).all()
    assert torch.equal(llama.capture(TOKENS, [name])[name], plain)


def test_capture_takes_no_gradient(llama) -> None:
    assert not llama(TOKENS).requires_grad
    assert not llama.capture(TOKENS, ["blocks.0.hook_out"])["blocks.0.hook_out"].requires_grad


def test_the_given_model_and_tokenizer_are_left_as_they_are(tiny_cache) -> None:
    module, tokenizer = tiny.build("gpt2").train(), copy.deepcopy(tiny.tokenizer())
    said = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side, len(tokenizer))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(inner).__name__ for inner in module.modules()]
    model = wb.load_model(module, tokenizer=tokenizer)
    assert model.network.bridge.tokenizer is tokenizer
    with model.intervening([wb.Clamp("neurons.1.post:7", 9.0), wb.Steer.along("blocks.1.attn.hook_q", [1.0] * 32)]):
        model(TOKENS)
    now = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side, len(tokenizer))
    assert now == said
    assert module.training
    assert [type(inner).__name__ for inner in module.modules()] == kinds
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_the_weights_are_shared_not_copied(tiny_cache) -> None:
    module = tiny.build("llama")
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    before = model(TOKENS)
    theirs = {parameter.data_ptr() for parameter in module.parameters()}
    assert {parameter.data_ptr() for parameter in model.network.module.parameters()} == theirs
    assert {parameter.data_ptr() for parameter in model.network.bridge.original_model.parameters()} <= theirs
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.allclose(model(TOKENS), before)
    assert torch.allclose(model(TOKENS), plain_logits(module, TOKENS), atol=1e-5)


def test_a_tokenizer_with_a_start_token_needs_no_hub(tiny_cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens would load such a tokenizer once more, by its name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.bos_token = "<|user|>"
    model = wb.load_model(tiny.build("gpt2", n_layer=1), tokenizer=tokenizer)
    assert model.generate("The dog", 2, stop=False).tokens


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_neuron_weights_are_vectors_in_the_residual_stream(zoo, name: str) -> None:
    plain = tiny.build(name)
    for layer in range(zoo[name].network.n_layers):
        for weights, expected in tiny.weights(plain, layer).items():
            assert torch.equal(zoo[name].network.neuron_weights(layer, weights), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_final_norm_is_found_by_asking_it(tiny_cache, name: str, dtype: torch.dtype) -> None:
    plain = tiny.build(name).to(dtype)
    decoder = plain.get_decoder()
    norm = {"llama": "norm", "gpt2": "ln_f", "neox": "final_layer_norm"}[name]
    gain, centred = wb.load_model(plain).network.final_norm()
    expected = getattr(decoder, norm).weight.detach().float()
    assert torch.allclose(gain, expected, atol=1e-4 if dtype == torch.float32 else 2e-2)
    assert centred == (name != "llama")


def test_half_precision_models_can_be_steered_and_decoded(tiny_cache) -> None:
    model = wb.load_model(tiny.build("llama").bfloat16(), tokenizer=tiny.tokenizer())
    f = "neurons.1.gate:7"
    edits = [
        wb.Clamp(f, 9.0),
        wb.Scale(f, 2.0),
        wb.Ablate("neurons.0.gate:7", "mean"),
        wb.Steer(f, 3.0),
        wb.Steer.along("blocks.1.hook_resid_post", torch.ones(32), 2.0),
    ]
    plain = model(TOKENS)
    for edit in edits:
        with model.intervening([edit]):
            assert not torch.equal(model(TOKENS), plain), edit
    assert len(wb.decode_neurons(model, top_k=3)) == 3 * 48


def test_models_that_differ_in_type_share_no_table(own_cache: Path) -> None:
    def modules(kind: torch.dtype) -> dict[str, str | None]:
        model = wb.load_model(tiny.build("llama").to(kind))
        return {name: point.module for name, point in model.hook_points.items()}

    found = [modules(kind) for kind in (torch.bfloat16, torch.float16)]
    plain = modules(torch.float32)
    assert len(list((own_cache / "hook_points").glob("*.json"))) == 3
    assert plain["blocks.2.hook_mlp_out"] == "model.layers.2.mlp"
    assert sum(module is not None for module in plain.values()) > 100
    assert found == [plain, plain]


def test_a_model_of_damaged_weights_is_refused(own_cache: Path) -> None:
    module = tiny.build("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(wb.model.ModelError, match="not finite"):
        wb.load_model(module)
    assert not list((own_cache / "hook_points").glob("*.json"))


def test_a_damaged_table_of_hook_points_is_made_anew(own_cache: Path) -> None:
    names = list(wb.load_model(tiny.build("llama")).hook_points)
    (table,) = (own_cache / "hook_points").glob("*.json")
    for damage in (table.read_bytes()[:500], b"", b"[]", b'[{"name": 3}]', b'{"a": 1}', b"\xff\xfe"):
        table.write_bytes(damage)
        model = wb.load_model(tiny.build("llama"))
        assert list(model.hook_points) == names
        assert model.hook_points["blocks.1.mlp.hook_post"].module == "model.layers.1.mlp.down_proj"
    assert list(own_cache.rglob("*.part")) == []


def test_hooks_are_put_in_place_once(tiny_cache) -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    clamp = [wb.Clamp("neurons.1.gate:7", 2.0)]

    def use() -> None:
        with model.intervening([*clamp, wb.Scale("neurons.1.gate:7", 3.0)]):
            model(TOKENS)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hooked = [inner for inner in model.network.module.modules() if inner is not model.network.module.lm_head]
    assert sum(len(inner._forward_hooks) + len(inner._forward_pre_hooks) for inner in hooked) == 1
    name = "blocks.1.mlp.hook_pre"
    with model.intervening([*clamp, wb.Scale("neurons.1.gate:7", 3.0)]):
        assert (model.capture(TOKENS, [name])[name][..., 7] == 6).all()


def test_models_print_what_they_are(llama) -> None:
    assert repr(llama) == f"<LlamaForCausalLM: 3 layers, d_model 32, {llama.hash[:12]}>"


def test_hash_follows_the_weights(tiny_cache) -> None:
    same, other = (wb.load_model(tiny.build("llama", seed)) for seed in (0, 0))
    assert same.hash == other.hash
    plain = tiny.build("llama")
    with torch.no_grad():
        plain.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-6
    assert wb.load_model(plain).hash != same.hash
