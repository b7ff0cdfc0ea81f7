"""Forms of models that need care: no stated positions, experts, norms behind the MLP, and forms that don't open."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.dictionaries.neurons import Neurons
from workbench.model.context import UNSTATED
from workbench.model.weights import ModelError

EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "olmoe", "granite-moe", "deepseek-v2")
NORM_BEHIND = ("exaone4", "olmo2", "olmo3", "gemma2", "gemma3", "glm4")


def opened(name: str) -> wb.model.LanguageModel:
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("name", "length"), [("mpt", tiny.CONTEXT), ("gpt2", tiny.CONTEXT), ("bloom", UNSTATED)])
def test_the_context_is_what_the_model_states(tiny_cache: object, name: str, length: int) -> None:
    assert opened(name).network.n_ctx == length


def test_without_a_stated_length_the_tokenizer_states_it(tiny_cache: object) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 77
    assert wb.load_model(zoo.build("bloom"), tokenizer=tokenizer).network.n_ctx == 77


@pytest.mark.parametrize("name", ["falcon", "opt-350m"])
def test_a_failure_of_transformer_lens_is_one_sentence(tiny_cache: object, name: str) -> None:
    with pytest.raises(ModelError, match=r"^TransformerLens can't open a (Falcon|OPT)ForCausalLM: .+\.$"):
        opened(name)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_layer_of_experts_has_no_neurons(tiny_cache: object, tmp_path: Path, name: str) -> None:
    model = opened(name)
    sentence = "The MLP of layer 1 is a mixture of experts, so it has no neurons of its own at 'post'"
    for site in ("gate", "up", "post"):
        with pytest.raises(ModelError, match=sentence):
            model.network.neuron_hook_point(1, site)
        with pytest.raises(wb.WorkbenchError, match=sentence):
            wb.interventions.features.dictionary_of(model, f"neurons.1.{site}:5")
    with pytest.raises(ModelError, match="mixture of experts"):
        wb.decode_neurons(model, "down")
    for neurons in ("neurons.1.post", Neurons("neurons.1.post", "blocks.1.mlp.hook_post", 32)):
        with pytest.raises(wb.WorkbenchError, match=sentence):
            wb.build_index(model, neurons, wb.Corpus(["The dog ran."]), tmp_path / "index")


def test_a_dense_layer_beside_experts_keeps_its_neurons(tiny_cache: object) -> None:
    assert opened("deepseek-v2").network.neuron_hook_point(0, "post").width == 48


@pytest.mark.parametrize("name", NORM_BEHIND)
def test_a_direction_contains_the_gain_of_the_norm_behind_it(tiny_cache: object, name: str) -> None:
    model = opened(name)
    network = model.network
    gain, _, centres = network.norm_weights("blocks.1.ln2_post.hook_out")
    assert not centres
    raw = network.neuron_weights(1, "down")
    assert torch.equal(network.neuron_directions(1, "down"), raw * gain)
    direction = wb.surgery.direction_of(model, "neurons.1.post:7")
    assert torch.equal(direction, raw[7] * gain)
    scores = wb.neurons.token_scores(model, wb.Feature("neurons.1.post", 7))
    assert torch.allclose(scores, network.module.get_output_embeddings().weight @ direction)
    attention, _, _ = network.norm_weights("blocks.1.ln1_post.hook_out")
    one = torch.ones(network.d_model)
    points = model.hook_points
    assert torch.equal(network.written(points["blocks.1.attn.hook_out"], one), attention)
    for place in ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"):
        assert torch.equal(network.written(points[place], one), one)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-j", "cohere", "opt"])
def test_without_a_norm_behind_it_a_direction_is_the_weights(tiny_cache: object, name: str) -> None:
    network = opened(name).network
    assert torch.equal(network.neuron_directions(1, "down"), network.neuron_weights(1, "down"))


def test_what_does_not_arrive_in_the_stream_as_it_is_is_refused(tiny_cache: object) -> None:
    points = (model := opened("llama")).hook_points
    for name, sentence in (
        ("blocks.1.ln2.hook_out", "is not added to the residual stream"),
        ("blocks.1.attn.hook_q", "wide and no input of a linear map|is not added to the residual stream"),
        ("ln_final.hook_out", "lies behind the last layer"),
    ):
        with pytest.raises(ModelError, match=sentence):
            model.network.into_stream(points[name])


def test_a_place_in_16_bits_says_how_far_apart_it_is(tiny_cache: object) -> None:
    model = wb.load_model(zoo.build("phi3"), tokenizer=tiny.tokenizer())
    with pytest.raises(ModelError, match=r"no module of its own computes blocks\.1\.mlp\.hook_pre"):
        model.network.neuron_weights(1, "gate")
    network = opened("llama").network
    point = network.hook_points["blocks.1.mlp.hook_pre"]
    network.hook_points._points[point.name] = dataclasses.replace(point, module=None)
    with pytest.raises(ModelError, match=r"differ by 0\.0% of the largest value in float32"):
        network.neuron_weights(1, "gate")
