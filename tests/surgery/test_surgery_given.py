"""What operations take: a model or any child of one, float32 only, texts that certificates are not measured on."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import CohereConfig, CohereForCausalLM, OPTConfig, OPTForCausalLM

import workbench as wb
from workbench.index.layout import FeatureIndexError
from workbench.surgery.certificate.certificate import held_out
from workbench.surgery.child import SurgeryError
from workbench.surgery.inputs import calibration, load_calibration

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
EDIT = wb.Clamp("neurons.0.post:3", 2.0)
CHANGES: dict[str, Callable[[Any], Any]] = {
    "bake": lambda model: wb.bake(model, [wb.interventions.RemoveHead(1, 0)]),
    "prune": lambda model: wb.surgery.prune(model, 0.5, score="magnitude"),
    "quantise": lambda model: wb.surgery.quantise(model, 4),
    "search_sparsity": lambda model: wb.surgery.search_sparsity(model, CORPUS, 0.5, passes=200, tokens=40, context=16)[
        0
    ],
    "search_bits": lambda model: wb.surgery.search_bits(model, CORPUS, 4, passes=200, tokens=40, context=16)[0],
    "drop_sublayers": lambda model: wb.surgery.drop_sublayers(model, CORPUS, 0.2, passes=200, tokens=40, context=16)[0],
    "merge_kv_heads": lambda model: wb.surgery.merge_kv_heads(model, 1, corpus=CORPUS, tokens=40),
    "swap_activation": lambda model: wb.surgery.swap_activation(model, "polyrelu", corpus=CORPUS, tokens=40),
    "remove_causal_mask": lambda model: wb.surgery.remove_causal_mask(model, [1]),
    "extract_expert": lambda model: wb.surgery.extract_expert(model, CORPUS, 0.5, tokens=40),
    "heal": lambda model: wb.surgery.heal(model, CORPUS, tokens=40, batch=2, context=16),
    "dare": lambda model: wb.surgery.dare(model, wb.surgery.quantise(model, 8), 0.5),
    "operate": lambda model: wb.surgery.apply_operation(model, "remove_sublayers", layers=[1]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_operation_takes_a_child_and_certifies_from_the_start(name: str, llama: wb.model.LanguageModel) -> None:
    first = wb.bake(llama, [EDIT])
    for given in (first, first.model):
        child = CHANGES[name](given)
        assert child.before is first
        said = child.certify(CORPUS, 60)
        assert said.parent["hash"] == llama.hash
        assert said.differences[0] is not None
        assert said.exact
    assert CHANGES[name](llama).before is None
    assert CHANGES[name](wb.bake(llama, [EDIT])).before is not None  # which nobody else holds


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_in_16_bits_has_children_of_its_type_and_a_certificate_that_measures_rounding(name: str) -> None:
    half = wb.load_model(tiny.build("llama").bfloat16(), tokenizer=tiny.tokenizer())
    child = CHANGES[name](wb.bake(half, [EDIT]))
    assert child.model.dtype == torch.bfloat16
    matrices = [one for one in child.model.network.module.parameters() if one.ndim == 2]
    assert {one.dtype for one in matrices} == {torch.bfloat16}
    said = child.certify(CORPUS, 60)
    assert said.dtype == "bfloat16"
    assert said.exact is None  # what is exact is claimed in float32 alone
    assert said.rounding is not None
    assert 0 < said.rounding < 1
    assert "bfloat16" in said.exactness() or "the same to the bit" in said.exactness()
    assert wb.surgery.Certificate.from_dict(said.to_dict()) == said


@pytest.mark.parametrize("name", CHANGES)
def test_other_things_are_refused(name: str) -> None:
    with pytest.raises(SurgeryError, match="is a LanguageModel or a Child, not None"):
        CHANGES[name](None)


def test_calibration_leaves_out_what_certificates_measure_on(llama: wb.model.LanguageModel) -> None:
    kept = held_out(llama)
    assert isinstance(kept, wb.Corpus)
    for texts in (calibration(None), load_calibration("stories")):
        assert not {*texts.texts} & {*kept.texts}
        assert {*texts.texts} | {*kept.texts} == {*wb.Corpus.load("stories").texts}
    assert calibration(CORPUS) is CORPUS
    by_name = wb.surgery.apply_operation(llama, "prune", tokens=50).history[-1]
    by_default = wb.surgery.prune(llama, tokens=50).history[-1]
    assert by_name["corpus_hash"] == by_default["corpus_hash"] == calibration(None).hash


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model: wb.surgery.heal(model, "stories", tokens=40),
        lambda model: wb.measures.measure_fidelities(model, [], "stories"),
        lambda model: wb.Corpus.load(""),
    ],
)
def test_texts_are_a_corpus(wrong: Callable[[Any], Any], llama: wb.model.LanguageModel) -> None:
    with pytest.raises(wb.WorkbenchError, match=r"is a Texts or a Corpus|that is not empty|corpus is a Corpus"):
        wrong(llama)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model: wb.surgery.prune(model, corpus="stories"),
        lambda model: wb.surgery.drop_sublayers(model, "stories"),
        lambda model: wb.surgery.extract_expert(model, "stories"),
    ],
)
def test_a_calibration_is_a_corpus(wrong: Callable[[Any], Any], llama: wb.model.LanguageModel) -> None:
    with pytest.raises(SurgeryError, match=r"corpus is a Corpus(, or None)?, not 'stories'"):
        wrong(llama)


def test_an_index_is_of_a_corpus(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(FeatureIndexError, match="corpus is a Corpus, not 'stories'"):
        wb.build_index(llama, "neurons.0.post", "stories", "nowhere")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda model: wb.surgery.prune(model, pattern=None), "pattern is a text, not None"),
        (lambda model: wb.surgery.prune(model, pattern="rows"), "The pattern is 'row'"),
        (lambda model: wb.surgery.prune(model, corpus=CORPUS, tokens="a"), "is a whole number"),
        (lambda model: wb.surgery.heal(model, CORPUS, tokens=40, lr="a"), "lr is a number above 0"),
        (lambda model: wb.surgery.remove_causal_mask(model, 3), "layers is a list of whole numbers, or None, not 3"),
        (lambda model: wb.surgery.dare(model, model, weights="a"), "weights is a number from .* or .*, not 'a'"),
        (lambda model: wb.measures.measure_fidelities(model, [], CORPUS, tokens=float("nan")), "is a whole number"),
        (lambda model: wb.Feature.parse("neurons.0.post:a"), "neurons"),
        (
            lambda model: wb.surgery.dare(model, model, weights=None),
            "weights is a number from .* or a list of numbers from .*, not None",
        ),
        (lambda model: wb.surgery.dare(model, model, rescale="no"), "True or False"),
        (lambda model: wb.surgery.drop_sublayers(model, CORPUS, seed="a"), "seed is a whole number"),
        (lambda model: wb.surgery.search_bits(model, CORPUS, "5"), "bits is a number"),
        (
            lambda model: wb.surgery.search_bits(model, CORPUS, levels=4),
            "levels is a list of whole numbers from 2 to 16, not 4",
        ),
        (lambda model: wb.surgery.search_sparsity(model, CORPUS, levels=0.5), "levels is a list"),
        (lambda model: wb.surgery.prune(model, sparsities=0.5), "sparsities is a mapping of texts to numbers"),
        (lambda model: wb.surgery.heal(model, CORPUS, tokens=40, sparsify=True), "sparsify is a Decay"),
        (
            lambda model: wb.surgery.heal(model, CORPUS, tokens=40, sparsify=wb.surgery.Decay(until="x")),
            "until is a number from 0 to 1",
        ),
        (lambda model: wb.surgery.heal(model, CORPUS, tokens=40, only=5), "only is a text, or None, not 5"),
        (lambda model: wb.surgery.keep_neurons(model, [1, 2]), r"mask is a Tensor, not \[1, 2\]"),
        (lambda model: wb.surgery.remove_causal_mask(model, [[0]]), "layers is a list of whole numbers"),
        (
            lambda model: wb.surgery.merge_kv_heads(wb.surgery.remove_causal_mask(model, [0]), 1, corpus=CORPUS),
            "would lose it",
        ),
        (
            lambda model: wb.surgery.dare(model, model, weights=float("inf")),
            "weights is a number from .* or .*, not inf",
        ),
        (lambda model: wb.bake(model, EDIT), "edits is a list of Interventions"),
        (lambda model: wb.bake(model, []), "give at least one edit"),
        (lambda model: wb.surgery.prune(model, corpus=CORPUS, tokens=-4), r"tokens is a whole number from 1, not -4\."),
        (
            lambda model: wb.surgery.drop_sublayers(model, CORPUS, context=-4),
            r"context is a whole number from 2, not -4\.",
        ),
        (
            lambda model: wb.surgery.drop_sublayers(model, CORPUS, method="greedy", passes=1),
            "runs .* candidates or more here, on",
        ),
        (lambda model: wb.surgery.search_bits(model, CORPUS, 2), "between the least of levels and 16.*not 2 with"),
        (lambda model: wb.surgery.search_bits(model, CORPUS, levels=()), "with levels \\[\\]"),
        (lambda model: wb.surgery.search_sparsity(model, CORPUS, 0.9), "at most the highest of levels; not 0.9"),
        (lambda model: wb.surgery.search_sparsity(model, CORPUS, levels=()), "with levels \\[\\]"),
        (lambda model: wb.bake(model, [EDIT]).save_pretrained(None), "folder is a text or a Path, not None"),
        (lambda model: wb.bake(model, [EDIT]).save_pretrained(""), "folder is a text or a Path that is not empty"),
        (lambda model: wb.surgery.open_child("nowhere", None), "parent is a LanguageModel or a Child, not None"),
    ],
)
def test_odd_values_get_a_sentence(wrong: Callable[[Any], Any], match: str, llama: wb.model.LanguageModel) -> None:
    with pytest.raises(ValueError, match=match):
        wrong(llama)


def test_how_it_was_chosen_is_on_record(llama: wb.model.LanguageModel) -> None:
    skipped, found = wb.surgery.drop_sublayers(llama, CORPUS, 0.2, passes=200, tokens=40, context=16, seed=3)
    said = skipped.history[-1]
    assert (said["found_by"], said["search_seed"], said["corpus_hash"]) == ("evopress", 3, CORPUS.hash)
    assert said["passes"] == found.token_forwards
    cut = wb.surgery.extract_expert(llama, CORPUS, 0.5, tokens=40, seed=2).history[-1]
    assert (cut["keep"], cut["text_seed"], cut["tokens"], cut["corpus_hash"]) == (0.5, 2, 40, CORPUS.hash)


def saved_and_opened(folder: Path) -> tuple[wb.model.LanguageModel, wb.surgery.Child]:
    """A model, and a child of it that was baked, certified, saved and opened again."""
    parent = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    child = wb.bake(parent, [EDIT])
    child.certify(CORPUS, 60)
    child.save_pretrained(folder / "child")
    return parent, wb.surgery.open_child(folder / "child", parent)


def test_a_child_that_was_opened_says_that_exactness_was_not_measured(tmp_path: Path) -> None:
    parent, opened = saved_and_opened(tmp_path)
    assert opened.certificate is not None
    assert opened.certificate.exact
    said = opened.certify(CORPUS, 60)
    assert said.exact is None
    assert "not measured" in said.exactness()
    assert (
        "No step stands for interventions"
        in wb.surgery.prune(parent, score="magnitude").certify(CORPUS, 60).exactness()
    )


def test_exactness_is_said_of_the_steps_that_have_it() -> None:
    parent = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    baked = wb.bake(parent, [EDIT])
    alone = baked.certify(CORPUS, 60).exactness()
    assert re.match(r"(Every|No) logit .* under the interventions[^.]*\.?[^.]*\.$", alone)
    assert "tep" not in alone
    pruned = wb.surgery.prune(baked, 0.3, score="magnitude")
    said = pruned.certify(CORPUS, 60)
    assert said.kl > 0
    assert said.exactness().startswith("Step 1 stands for interventions: after it ")
    assert said.exactness().endswith(" Step 2 stands for none: only the costs say what came of that.")
    again = wb.surgery.quantise(wb.bake(pruned, [wb.interventions.RemoveHead(1, 0)]), 8)
    words = again.certify(CORPUS, 60).exactness()
    assert words.startswith("Steps 1 and 3 stand for interventions: after each ")
    assert words.endswith(" Steps 2 and 4 stand for none: only the costs say what came of that.")
    assert words in again.certify(CORPUS, 60).to_markdown()


def test_exactness_is_claimed_for_all_steps_or_none(tmp_path: Path) -> None:
    _, opened = saved_and_opened(tmp_path)
    said = wb.bake(opened, [wb.interventions.RemoveHead(1, 0)]).certify(CORPUS, 60)
    assert said.differences == [None, pytest.approx(0.0, abs=1e-4)]
    assert said.exact is None
    assert "not measured" in said.exactness()
    assert "In the steps since then no logit is further than" in said.exactness()
    again = wb.surgery.Certificate.from_dict(said.to_dict())
    assert again.exact is None


def test_edits_beside_a_child_are_not_lost_by_the_next_operation(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    here = wb.Clamp("neurons.1.post:3", 5.0, positions="prompt")
    child = wb.bake(llama, [wb.interventions.RemoveHead(0, 1), here], beside=True)
    for change in CHANGES.values():
        for given in (child, child.model):
            with pytest.raises(SurgeryError, match="has edits beside its weights"):
                change(given)
    with pytest.raises(SurgeryError, match="has edits beside its weights"):
        wb.surgery.dare(llama, child)
    child.certify(CORPUS, 60)
    child.save_pretrained(tmp_path / "child")
    with pytest.raises(SurgeryError, match="has edits beside its weights"):
        wb.surgery.quantise(wb.surgery.open_child(tmp_path / "child", llama))


def test_models_are_given_back_as_soon_as_nobody_holds_them() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    gc.disable()
    try:
        first = wb.surgery.quantise(model, 8)
        second = wb.surgery.quantise(first, 4)
        assert second.before is first
        gone = [weakref.ref(first.model), weakref.ref(second.model)]
        del second
        assert gone[1]() is None
        del first
        assert gone[0]() is None
    finally:
        gc.enable()


def test_deltas_are_between_models_that_compute_alike(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    relu = wb.surgery.swap_activation(llama, "relu")
    with pytest.raises(SurgeryError, match="don't compute alike: hidden_act is 'relu' and 'silu'"):
        wb.surgery.dare(llama, relu)
    relu.certify(CORPUS, 60)
    relu.save_pretrained(tmp_path / "relu")
    with pytest.raises(SurgeryError, match="don't compute alike"):
        wb.surgery.dare(llama, tmp_path / "relu")
    with pytest.raises(SurgeryError, match="it has no plain delta"):
        wb.surgery.dare(llama, wb.surgery.remove_causal_mask(llama, [0]))


def test_searches_and_fine_tunes_run_inside_inference_mode(llama: wb.model.LanguageModel) -> None:
    with torch.inference_mode():
        found = wb.surgery.drop_sublayers(llama, CORPUS, 0.3, passes=2000, tokens=40, context=16)[1]
    assert found == wb.surgery.drop_sublayers(llama, CORPUS, 0.3, passes=2000, tokens=40, context=16)[1]


def test_a_folder_whose_weights_were_exchanged_is_not_merged(tmp_path: Path) -> None:
    parent = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    for name, factor in (("one", 1.01), ("two", 1.02)):
        child = wb.bake(parent, [wb.Scale("neurons.0.post:3", factor)])
        child.certify(CORPUS, 60)
        child.save_pretrained(tmp_path / name)
    assert wb.surgery.dare(parent, tmp_path / "one", 0.0).own
    weights = tmp_path / "two" / "model.safetensors"
    weights.replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(SurgeryError, match="are not those that were saved"):
        wb.surgery.dare(parent, tmp_path / "one", 0.0)


def test_heads_that_turn_neighbours_have_a_mean_and_no_singular_vectors() -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = wb.load_model(CohereForCausalLM(CohereConfig(**size | heads, eos_token_id=0, bos_token_id=1)).eval())
    with pytest.raises(SurgeryError, match="take the mean"):
        wb.surgery.merge_kv_heads(model, 1, corpus=CORPUS)
    assert wb.surgery.merge_kv_heads(model, 1, method="mean").model.network.config.num_key_value_heads == 1


def test_mlps_that_see_all_rows_as_one_can_be_read_edited_and_baked() -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "word_embed_proj_dim": 32}
    module = OPTForCausalLM(OPTConfig(**size, num_attention_heads=4, max_position_embeddings=64)).eval()
    model = wb.load_model(module)
    tokens = torch.arange(14).view(2, 7)
    seen: list[torch.Tensor] = []
    handle = module.model.decoder.layers[0].fc1.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        module(input_ids=tokens)
    handle.remove()
    name = "blocks.0.mlp.hook_pre"
    assert torch.allclose(model.capture(tokens, [name])[name].flatten(0, 1), seen[0].flatten(0, -2), atol=1e-6)
    with model.intervening([EDIT]):
        wanted = model(tokens)
    assert float((wanted - model(tokens)).abs().max()) > 1e-3
    assert float((wanted - wb.bake(model, [EDIT]).model(tokens)).abs().max()) < 1e-5
