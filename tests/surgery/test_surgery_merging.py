"""Merges against what mergekit 0.1.5 itself wrote (`scripts/make_mergekit_fixtures.py`)."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import workbench as wb
from workbench.model.weights import state_of
from workbench.surgery.child import SurgeryError
from workbench.surgery.merging.methods import Draws, thinned

pytestmark = pytest.mark.usefixtures("tiny_cache")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "mergekit"
RECIPES: dict[str, str] = json.loads((FIXTURES / "recipes.json").read_text())
SEED = 7
"""Of mergekit's random masks."""


@pytest.fixture(autouse=True)
def _beside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "models")


def merge(recipe: str | Path | dict[str, Any], **how: Any) -> wb.surgery.Child:
    return wb.surgery.merge(recipe, **{"device": "cpu", "seed": SEED} | how)


def weights(child: wb.surgery.Child) -> dict[str, Tensor]:
    return state_of(child.model.network.module)


CASES = sorted(RECIPES)
if not os.environ.get("WORKBENCH_LAWS"):  # a seeded sample
    CASES = sorted(random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(CASES, 15))


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_mergekits_to_the_bit(case: str) -> None:
    child, wanted = merge(RECIPES[case]), load_file(FIXTURES / f"{case}.safetensors")
    with safe_open(FIXTURES / f"{case}.safetensors", "pt") as opened:
        sizes = opened.metadata()
    found = weights(child)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    config = child.model.network.config
    assert (config.num_hidden_layers, config.vocab_size) == (int(sizes["layers"]), int(sizes["vocab_size"]))


def test_a_recipe_is_a_file_a_text_or_a_mapping(tmp_path: Path) -> None:
    text = RECIPES["slerp"]
    (tmp_path / "recipe.yml").write_text(text)
    mapping = {"merge_method": "slerp", "base_model": "base", "parameters": {"t": 0.3}}
    mapping["models"] = [{"model": "base"}, {"model": "one"}]
    hashes = {merge(one).model.hash for one in (text, tmp_path / "recipe.yml", str(tmp_path / "recipe.yml"), mapping)}
    assert len(hashes) == 1


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_recipe_says_so(empty: str) -> None:
    with pytest.raises(SurgeryError, match="The recipe is empty; give YAML"):
        merge(empty)


def test_a_merged_child_records_its_parents_and_opens_again(tmp_path: Path) -> None:
    child = merge(RECIPES["dare_ties"])
    step = child.history[-1]
    assert child.parent.name == "base"
    assert [one["name"] for one in step["of"]] == ["base", "one", "two"]
    assert [one["weights_hash"] for one in step["of"]] == [
        wb.load_model(name).weights_hash for name in ("base", "one", "two")
    ]
    assert step["recipe"]["merge_method"] == "dare_ties"
    assert step["seed"] == SEED
    assert 0.4 < step["kept"] < 0.5  # of densities 0.6 and 0.3
    certificate = child.certify(wb.Corpus(["the dog ran to a house and my cat ran to the river"] * 4), 60, context=8)
    assert f"recipe `{json.dumps(step['recipe'], ensure_ascii=False)}`" in certificate.to_markdown()
    assert f"seed {SEED}" in certificate.to_markdown()
    assert "model.norm.weight" not in repr(child)
    child.save_pretrained(tmp_path / "merged")
    opened = wb.surgery.open_child(tmp_path / "merged", child.parent)
    assert (opened.model.hash, opened.certificate) == (child.model.hash, child.certificate)
    assert r"dare\_ties" in (tmp_path / "merged" / "certificate.md").read_text()
    assert merge(RECIPES["dare_ties"], seed=8).model.hash != child.model.hash


def test_drawn_masks_keep_their_share_and_their_expectation() -> None:
    delta, times, density = torch.randn(50, generator=torch.Generator().manual_seed(1)), 2000, 0.3
    draws = Draws(torch.Generator().manual_seed(SEED))
    made = torch.stack([thinned(delta, density, "drawn", draws, rescale=False) for _ in range(times)])
    assert bool(((made == 0) | (made == delta)).all())
    spread = (density * (1 - density) / times) ** 0.5
    assert draws.kept / draws.total == pytest.approx(density, abs=4 * spread / 50**0.5)
    assert float(((made.mean(0) / delta - density) / spread).square().mean()) == pytest.approx(1, abs=0.8)
    whole = thinned(delta, density, "drawn", draws, rescale=True)
    assert float(whole.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)


def test_the_base_and_the_first_are_parents_and_what_differs_is_recorded(tmp_path: Path) -> None:
    shutil.copytree("one", tmp_path / "far")
    config = json.loads((tmp_path / "far" / "config.json").read_text())
    config["max_position_embeddings"] = 64
    (tmp_path / "far" / "config.json").write_text(json.dumps(config))
    recipe = {"merge_method": "linear", "parameters": {"weight": 1.0}}
    recipe["models"] = [{"model": "two"}, {"model": str(tmp_path / "far")}]
    child = merge(recipe)
    assert child.parent.name == "two"
    assert child.history[-1]["unlike"] == {str(tmp_path / "far"): {"max_position_embeddings": [32, 64]}}
    assert child.model.network.config.max_position_embeddings == 32


def test_templates_of_chats(tmp_path: Path) -> None:
    text = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    child = merge(RECIPES["slerp"] + f'chat_template: "{text}"\n')
    assert child.model.tokenizer.chat_template == text
    assert child.parent.tokenizer.chat_template is None
    assert child.model.hash != merge(RECIPES["slerp"]).model.hash
    assert merge(RECIPES["slerp"] + "chat_template: auto\n").model.tokenizer.chat_template is None


LINEAR = "merge_method: linear\nmodels:\n  - model: base\n  - model: one\nparameters: {weight: 1.0}\n"
WRONG = {
    "tag": (LINEAR + "dtype: !!python/name:os.system\n", "has the tag"),
    "anchor": ("a: &x [1]\nb: [*x, *x]\n", "anchor or alias"),
    "twice": (LINEAR + "merge_method: ties\n", "a second time"),
    "no YAML": ("a: [1\nb: 2", "no YAML"),
    "deep": ("a: " + "[" * 5000, "too deeply"),
    "method": (LINEAR.replace("linear", "della"), "merge_method 'della' is not read"),
    "field": (LINEAR + "moduls: {}\n", "moduls of a recipe is not read"),
    "modules": (LINEAR + "modules: {}\n", "modules of a recipe is not read: only models"),
    "parameter": (LINEAR.replace("weight:", "wieght:"), "parameters.wieght is not read: linear has weight"),
    "parameter elsewhere": (
        LINEAR.replace("model: one", "model: one\n    parameters: {normalize: true}"),
        r"models\[1\].parameters.normalize has no effect",
    ),
    "missing parameter": (LINEAR.replace("weight: 1.0", ""), "no weight for"),
    "range": (RECIPES["ties"].replace("0.6", "1.6"), "density is a number from 0 to 1"),
    "kind": (LINEAR.replace("1.0", "[a, b]"), "is a number in a recipe"),
    "neither": ("merge_method: linear\n", "either models or slices"),
    "no base": (RECIPES["ties"].replace("base_model: base\n", ""), "needs a base_model"),
    "too many": (RECIPES["slerp"].replace("  - model: one", "  - model: one\n  - model: two"), "takes 2 models"),
    "model twice": (LINEAR.replace("model: one", "model: base"), "twice"),
    "adapter": (LINEAR.replace("model: one", "model: one+lora"), "names an adapter"),
    "revision": (LINEAR.replace("model: one", "model: org/one@main"), "names a revision"),
    "type": (LINEAR + "dtype: int64\n", "dtype is one of"),
    "float64": (LINEAR + "dtype: float64\n", "not held in float64"),
    "template": (LINEAR + "chat_template: chatml\n", "is no template"),
    "tokens": (LINEAR + "tokenizer: {source: base, tokens: {}}\n", "tokenizer.tokens of a recipe is not read"),
    "tokenizer": (LINEAR + "tokenizer_source: two\n", "not one of the models"),
    "past the end": (RECIPES["passthrough_slices"].replace("[1, 3]", "[2, 4]"), "past the 3 layers of two"),
    "lengths": (RECIPES["slerp_filters"].replace("[0, 3]", "[0, 2]", 1), "different numbers of layers"),
    "architecture": (LINEAR.replace("model: one", "model: gpt2"), "only models of one architecture"),
    "no such model": (LINEAR.replace("model: one", "model: /nowhere/at-all"), "no folder '/nowhere/at-all'"),
    "sum of weights": (LINEAR.replace("1.0", "0.0"), "sum to 0"),
    "a file": (LINEAR.replace("model: one", "model: one/model.safetensors"), "not a model folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_read_is_refused_in_one_sentence(case: str) -> None:
    recipe, words = WRONG[case]
    with pytest.raises(wb.WorkbenchError, match=words) as told:
        merge(recipe)
    assert "\n" not in str(told.value)
    assert str(told.value).rstrip(".").count(". ") == 0


def _copy(folder: Path, change: Any) -> str:
    shutil.copytree("one", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return LINEAR.replace("model: one", f"model: {folder}")


def test_unlike_models_are_refused(tmp_path: Path) -> None:
    place = "model.layers.1.mlp.down_proj.weight"
    missing = _copy(tmp_path / "missing", lambda tensors: tensors.pop(place))
    with pytest.raises(SurgeryError, match="only one of them has a tensor mlp"):
        merge(missing)
    extra = _copy(tmp_path / "extra", lambda tensors: tensors.update(score=torch.ones(2)))
    with pytest.raises(SurgeryError, match="holds a tensor score, which the base has no place for"):
        merge(extra)
    wide = _copy(tmp_path / "wide", lambda tensors: tensors.update({place: torch.ones(8, 13)}))
    with pytest.raises(SurgeryError, match="only tensors of equal shapes"):
        merge(wide)
    other = _copy(tmp_path / "other", lambda tensors: None)
    words = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(words.replace('"dog": 4', '"frog": 4'))
    with pytest.raises(SurgeryError, match=r"tokenizers of base and .* are unlike: token 4 is 'dog' and 'frog'"):
        merge(other)
    config = json.loads((tmp_path / "extra" / "config.json").read_text()) | {"hidden_act": "gelu"}
    (tmp_path / "extra" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SurgeryError, match="don't compute alike: hidden_act"):
        merge(extra)


def test_layers_of_another_kind_stand_in_the_history(tmp_path: Path) -> None:
    kinds = {"one": ["sliding_attention", "full_attention"], "two": ["full_attention", "sliding_attention"]}
    for name, types in kinds.items():
        sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}
        Gemma2ForCausalLM(Gemma2Config(**sizes, layer_types=types)).save_pretrained(tmp_path / name)
    parts = [{"model": str(tmp_path / name), "parameters": {"weight": 1.0}} for name in kinds]
    child = merge({"merge_method": "linear", "models": parts})
    assert child.model.network.config.layer_types == kinds["one"]
    unlike = child.history[-1]["unlike"]
    assert unlike == {str(tmp_path / "two"): {"layer_types": [kinds["one"], kinds["two"]]}}
