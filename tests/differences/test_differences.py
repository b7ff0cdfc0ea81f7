"""Two models compared: planted changes are found, grafts are weights exchanged by hand, nothing is said of nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.differences import DifferenceError, ModelDifferences, compare_models
from workbench.differences.weights import singular_values
from workbench.model.weights import parameters_of
from workbench.surgery.child import Child, make_child

pytestmark = pytest.mark.usefixtures("tiny_cache")

TEXTS = [
    "The dog ran to the river and the cat ran to the house.",
    "Once upon a time there was a small green boat, which sailed over the wide water every morning.",
    "What is your favourite animal? My favourite animal is a dog.",
    "The cat and the mouse are friends, and the dog is not.",
] * 3
CORPUS = wb.Corpus(TEXTS, "tiny")


@pytest.fixture(scope="module")
def llama() -> wb.model.LanguageModel:
    return wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())


def changed(model: wb.model.LanguageModel, tensors: dict[str, Tensor]) -> Child:
    return make_child(model, tensors, {"operation": "planted"})


def weights_of(model: wb.model.LanguageModel) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in parameters_of(model.network.module).items()}


def drawn(seed: int, *most: int) -> list[int]:
    chance = torch.Generator().manual_seed(seed)
    return [int(torch.randint(one, (1,), generator=chance)) for one in most]


def test_a_model_against_itself_says_nothing(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    again = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    sae = wb.TopKSAE(d_in=32, width=48, k=4)
    sae.reads = sae.writes = "blocks.1.hook_resid_post"
    edit = wb.Clamp(wb.Feature.parse("neurons.1.up:3"), 2.0)
    for other in (llama, again):
        result = compare_models(llama, other, CORPUS, tokens=64, dictionaries=[sae], interventions=[edit])
        assert not result.findings
        assert not result.notes
        assert result.texts is not None
        assert result.texts.kl == 0
        assert not result.texts.passages


def test_texts_and_streams_are_those_of_plain_passes(llama: wb.model.LanguageModel) -> None:
    chance = torch.Generator().manual_seed(0)
    tensors = weights_of(llama)
    name = "model.layers.1.mlp.down_proj.weight"
    child = changed(llama, {name: tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=chance)})
    result = compare_models(llama, child, CORPUS, parts=["texts"], tokens=200, context=64)
    one, other = tiny.build("llama"), tiny.build("llama")
    other.load_state_dict(other.state_dict() | {name: child.model.network.module.state_dict()[name]})
    kls, losses, cosines, distances = [], [[], []], [], []
    for some in CORPUS.batches(llama, 64, 1, 200, 0):
        ids = some.tokens[:, some.mask[0]]
        with torch.no_grad():
            outs = [module(input_ids=ids, output_hidden_states=True) for module in (one, other)]
        logs = [out.logits[0].double().log_softmax(-1) for out in outs]
        kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        counted = (some.content[0, :-1] & some.content[0, 1:])[: ids.shape[1] - 1]
        kls += kl[:-1][counted].tolist()
        for side in range(2):
            losses[side] += (-logs[side][:-1].gather(1, ids[0, 1:, None])[:, 0])[counted].tolist()
        x, y = (out.hidden_states[2][0][some.content[0][: ids.shape[1]]] for out in outs)
        cosines += torch.cosine_similarity(x, y, dim=-1).tolist()
        distances += ((x - y).norm(dim=-1) / x.norm(dim=-1)).tolist()
    assert result.texts is not None
    assert result.texts.predictions == len(kls)
    assert result.texts.kl == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    for side in range(2):
        assert result.texts.losses[side] == pytest.approx(sum(losses[side]) / len(kls), rel=1e-4)
    assert result.stream[1].cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert result.stream[1].distance == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert result.stream[0].distance == 0
    assert result.texts.passages[0].kl == pytest.approx(max(kls), rel=1e-3)
    low, high = result.texts.kl_interval
    assert low <= result.texts.kl <= high


def test_planted_heads_neurons_and_low_ranks_are_on_top(llama: wb.model.LanguageModel) -> None:
    other = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    parameters = dict(other.network.module.named_parameters())

    def planted(name: str, change: Tensor) -> ModelDifferences:
        before = parameters[name].detach().clone()
        with torch.no_grad():
            parameters[name] += change
            found = compare_models(llama, other, CORPUS, parts=["weights"])
            parameters[name].copy_(before)
        assert found.weights is not None
        assert [one.name for one in found.weights.tensors] == [name]
        return found

    for seed in range(20):
        chance = torch.Generator().manual_seed(100 + seed)
        layer, head, neuron, rank = drawn(seed, 3, 4, 48, 3)
        block = f"model.layers.{layer}"
        change = torch.zeros(32, 32)
        change[:, 8 * head : 8 * head + 8] = 0.05 * torch.randn(32, 8, generator=chance)
        found = planted(f"{block}.self_attn.o_proj.weight", change)
        assert next(one for one in found if one.kind == "head").sentence.startswith(f"Head {layer}.{head} ")
        assert [one.name for one in found.weights.heads] == [f"{layer}.{head}"]  # type: ignore[union-attr]
        change = torch.zeros(48, 32)
        change[neuron] = 0.02 * torch.randn(32, generator=chance)
        found = planted(f"{block}.mlp.up_proj.weight", change)
        assert next(one for one in found if one.kind == "neuron").feature == f"neurons.{layer}.up:{neuron}"
        a, b = torch.randn(32, rank + 1, generator=chance), torch.randn(rank + 1, 32, generator=chance)
        found = planted(f"{block}.self_attn.q_proj.weight", 0.01 * a @ b)
        assert next(one for one in found if one.kind == "rank").number == rank + 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_grafts_are_weights_exchanged_by_hand(kind: str) -> None:
    model = wb.load_model(tiny.build(kind), tokenizer=tiny.tokenizer())
    chance = torch.Generator().manual_seed(1)
    new = {name: one + 0.05 * torch.randn(one.shape, generator=chance) for name, one in weights_of(model).items()}
    child = changed(model, new)
    found = compare_models(model, child, CORPUS, parts=["grafts"], tokens=60, graft_tokens=60, context=32)
    one, other = tiny.build(kind), tiny.build(kind)
    other.load_state_dict(child.model.network.module.state_dict())
    batches = list(CORPUS.batches(model, 32, 1, 60, 0))
    words = {"llama": ("self_attn", "mlp"), "gpt2": ("attn", "mlp"), "neox": ("attention", "mlp")}[kind]
    path = {"llama": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers"}[kind]

    def kl(module: Any) -> float:
        total = 0.0
        for some in batches:
            with torch.no_grad():
                p, q = (m(input_ids=some.tokens).logits[0, :-1].double().log_softmax(-1) for m in (other, module))
            counted = some.content[0, :-1] & some.content[0, 1:]
            total += float((p.exp() * (p - q)).sum(-1)[counted].sum())
        return total

    plain = kl(one)
    by_part = {graft.part: graft.closed for graft in found.grafts}
    layers = model.network.n_layers
    assert len(by_part) == 3 * layers + 1
    for layer in range(layers):
        for part, inside in ((f"layer {layer}", ""), (f"attention of layer {layer}", words[0]),
                             (f"mlp of layer {layer}", words[1])):  # fmt: skip
            twin = copy.deepcopy(one)
            source, target = (
                module.get_submodule(f"{path}.{layer}" + (f".{inside}" if inside else "")) for module in (other, twin)
            )
            target.load_state_dict(source.state_dict())
            assert by_part[part] == pytest.approx(1 - kl(twin) / plain, abs=1e-4)


def test_decoding_latents_and_edits(llama: wb.model.LanguageModel) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors = weights_of(llama)
    gate = tensors[name]
    head = tensors["model.embed_tokens.weight"]
    gate[5] = -gate[5]
    other = "model.layers.0.mlp.down_proj.weight"
    child = changed(llama, {name: gate, other: tensors[other] * 3})
    sae = wb.TopKSAE(d_in=32, width=48, k=4)
    sae.reads = sae.writes = "blocks.1.hook_resid_post"
    sae.name = "small"
    edit = wb.Clamp(wb.Feature.parse("neurons.0.up:3"), 20.0)
    how = {"dictionaries": [sae], "interventions": [edit], "tokens": 200, "context": 64}
    found = compare_models(llama, child, CORPUS, parts=["features"], **how)  # type: ignore[arg-type]
    assert found.decoding is not None
    assert found.decoding.neurons == 1
    assert found.decoding.kept == 0
    tops = [int((head @ vector).argmax()) for vector in (-gate[5], gate[5])]
    assert found.decoding.changed == [("neurons.1.gate:5", *llama.token_labels(tops))]
    rates = []
    for model in (llama, child.model):
        codes = [
            sae.encode(model.capture(some.tokens, [sae.reads])[sae.reads][some.content]).dense() > 0
            for some in CORPUS.batches(llama, 64, 8, 200, 0)
        ]
        rates.append(torch.cat(codes).double().mean(0))
    for latent in found.dictionaries[0].latents:
        index = int(latent.feature.split(":")[1])
        assert (latent.rate, latent.rate_b) == pytest.approx((float(rates[0][index]), float(rates[1][index])))
    assert found.edits[0].effect_b != pytest.approx(found.edits[0].effect, rel=0.01)
    assert {one.kind for one in found} >= {"decoding", "edit"}


def test_unlike_models_are_compared_by_texts_or_refused(llama: wb.model.LanguageModel) -> None:
    found = compare_models(llama, wb.load_model(tiny.build("gpt2"), tokenizer=tiny.tokenizer()), CORPUS, tokens=64)
    assert found.notes == ["The models are compared by their texts alone, since their architectures differ."]
    assert {one.kind for one in found} == {"texts"}
    with pytest.raises(DifferenceError, match="need a tokenizer"):
        compare_models(llama, wb.load_model(tiny.build("llama")), CORPUS, tokens=64)
    edits = [wb.Clamp(wb.Feature.parse("neurons.1.gate:3"), 2.0)]
    found = compare_models(llama, wb.bake(llama, edits), CORPUS, tokens=64)  # has a bias that its parent lacks
    assert "no counterpart" in found.notes[0]
    assert found.stream[0].distance == 0
    assert found.stream[1].distance > 0
    assert next(one for one in found if one.kind == "neuron").feature == "neurons.1.up:3"
    unlike = copy.deepcopy(tiny.tokenizer())
    unlike.add_tokens(["horse"])
    with pytest.raises(DifferenceError, match="unlike tokenizers"):
        compare_models(llama, wb.load_model(tiny.build("llama", vocab_size=332), tokenizer=unlike), CORPUS, tokens=64)


def test_folders_share_what_is_equal(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    tensors = weights_of(llama)
    name = "model.layers.2.mlp.up_proj.weight"
    child = changed(llama, {name: tensors[name] * 1.1})
    child.save_pretrained(tmp_path / "child")
    asked = []
    found = compare_models(llama, str(tmp_path / "child"), CORPUS, tokens=64, prompts=["The dog"], max_new_tokens=3,
                           progress=lambda share, words: asked.append(share))  # fmt: skip
    assert found.weights is not None
    assert [one.name for one in found.weights.tensors] == [name]
    assert found.weights.tensors[0].relative == pytest.approx(0.1, rel=1e-3)
    assert found.answers[0][1] == llama.generate("The dog", 3).text
    assert asked == sorted(asked)
    stopped = compare_models(llama, child, CORPUS, tokens=64, cancel=lambda: True)
    assert stopped.notes[-1].startswith("The comparison was stopped")
    assert "differ" in found._repr_html_()
    assert found.to_dict()["findings"][0]["call"].startswith("wb.differences")
    assert found.figure().data


def test_singular_values_are_those_of_numpy() -> None:
    matrix = torch.randn(7, 19, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(singular_values(matrix), torch.linalg.svdvals(matrix.double()), atol=1e-6)


def test_work_that_stops_in_its_last_part_says_so(llama: wb.model.LanguageModel) -> None:
    calls: list[int] = []

    def cancel() -> bool:
        calls.append(1)
        return len(calls) > 1

    found = compare_models(llama, llama, CORPUS, tokens=256, context=8, batch=1, parts=["texts"], cancel=cancel)
    assert found.texts is not None
    assert found.texts.predictions < 20
    assert found.notes[-1].startswith("The comparison was stopped")


def test_a_short_list_does_not_say_that_nothing_else_changed(llama: wb.model.LanguageModel) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    child = changed(llama, {name: weights_of(llama)[name] * 1.5})
    for top in (1, 2, 8):
        found = compare_models(llama, child, CORPUS, parts=["weights"], tokens=64, top=top)
        assert [one.kind for one in found.findings].count("head") == 1
        assert not any("no other one changed" in repr(one) for one in found.findings)


def test_changes_from_zero_and_of_other_types_are_said(llama: wb.model.LanguageModel) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weights = weights_of(llama)
    sides = []
    for factor in (0.0, 1.0):
        module = tiny.build("llama")
        tensor = weights[name] * factor
        for part in ("gate_proj", "up_proj"):
            module.model.layers[0].mlp.get_submodule(part).weight.data[3] *= factor
        module.model.layers[0].mlp.down_proj.weight.data.copy_(tensor)
        sides.append(wb.load_model(module, tokenizer=tiny.tokenizer()))
    found = compare_models(*sides, CORPUS, parts=["weights"], tokens=64)
    assert found.weights is not None
    assert found.weights.neurons[0].name.endswith(":3")
    assert found.weights.neurons[0].relative == float("inf")
    assert "from zero" in repr([one for one in found.findings if one.kind == "weights"])
    half = wb.load_model(tiny.build("llama").to(torch.bfloat16), tokenizer=tiny.tokenizer())
    typed = compare_models(llama, half, CORPUS, parts=["weights"], tokens=64)
    assert typed.notes == ["a computes in float32 and b in bfloat16, whose rounding is part of what differs."]
    assert typed.weights is None
