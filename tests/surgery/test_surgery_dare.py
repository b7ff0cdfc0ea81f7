"""DARE and delta arithmetic against loops over numbers, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import zoo as architectures
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.model.weights import parameters_of
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.dare import dare
from workbench.surgery.registry import Cancelled, apply_operation

pytestmark = pytest.mark.usefixtures("tiny_cache")
FILE = "model.safetensors"


def tuned(name: str, seed: int, size: float = 0.02) -> wb.model.LanguageModel:
    """The tiny model of this architecture with something added to every weight."""
    module = tiny.build(name)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=chance))
    return wb.load_model(module, tokenizer=tiny.tokenizer())


def weights(model: wb.model.LanguageModel | nn.Module) -> dict[str, Tensor]:
    return parameters_of(model.network.module if isinstance(model, wb.model.LanguageModel) else model)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_whole_deltas_add_up(name: str, zoo) -> None:
    one, two = tuned(name, 1), tuned(name, 2)
    child = dare(zoo[name], [one, two], 0.0, weights=[1.5, -0.5])
    for place, base in weights(tiny.build(name)).items():
        wanted = base + 1.5 * (weights(one)[place] - base) - 0.5 * (weights(two)[place] - base)
        assert torch.allclose(weights(child.model)[place], wanted, atol=1e-6)
    assert child.undo() is zoo[name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("rescale", [True, False])
def test_every_number_is_dropped_or_made_larger(name: str, rescale: bool, zoo) -> None:
    other = tuned(name, 1)
    child = dare(zoo[name], other, 0.75, rescale=rescale, seed=3)
    kept = total = 0
    for place, base in weights(tiny.build(name)).items():
        delta = weights(other)[place] - base
        made = weights(child.model)[place] - base
        stays = made.abs() > 1e-7
        assert torch.allclose(made[stays], (4 if rescale else 1) * delta[stays], atol=2e-6)
        kept, total = kept + int(stays.sum()), total + stays.numel()
    assert abs(kept / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5 + 1e-3


def test_the_expectation_over_seeds_is_the_whole_delta(llama: wb.model.LanguageModel) -> None:
    other, draws = tuned("llama", 1), 64
    place = "model.layers.1.mlp.down_proj.weight"
    delta = weights(other)[place] - weights(llama)[place]
    made = torch.stack(
        [weights(dare(llama, other, 0.5, seed=seed).model)[place] - weights(llama)[place] for seed in range(draws)]
    )
    deviation = (made.mean(0) - delta) / (delta.abs() / draws**0.5)  # each draw: delta · (0 or 2), so its σ is |delta|
    assert float(deviation.abs().mean()) == pytest.approx((2 / torch.pi) ** 0.5, rel=0.1)  # E|N(0, 1)|
    assert float(made.mean() / delta.mean()) == pytest.approx(1, abs=0.5)
    unscaled = dare(llama, other, 0.5, rescale=False, seed=0).model
    assert torch.allclose(2 * (weights(unscaled)[place] - weights(llama)[place]), made[0], atol=1e-5)


def test_draws_differ_between_tensors_models_and_seeds_and_repeat(llama: wb.model.LanguageModel) -> None:
    other = tuned("llama", 1)

    def stays(seed: int, layer: int = 0) -> Tensor:
        place = f"model.layers.{layer}.mlp.up_proj.weight"
        return weights(dare(llama, other, 0.5, seed=seed).model)[place] != weights(llama)[place]

    assert torch.equal(stays(0), stays(0))
    assert not torch.equal(stays(0), stays(1))
    assert not torch.equal(stays(0, 0), stays(0, 1))
    twice = dare(llama, [other, other], 0.5, seed=0)
    delta = (weights(twice.model)["model.norm.weight"] - weights(llama)["model.norm.weight"]) / (
        weights(other)["model.norm.weight"] - weights(llama)["model.norm.weight"]
    )
    assert {round(value) for value in delta.tolist()} == {0, 2, 4}  # neither, one or both of the two draws


def test_folders_are_read_like_models(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    other = tuned("llama", 1)
    other.network.module.save_pretrained(tmp_path / "plain")
    wb.interventions.save_model(other, tmp_path / "spliced")
    direct = weights(dare(llama, other, 0.5).model)
    for folder in ("plain", "spliced"):
        child = dare(llama, tmp_path / folder, 0.5)
        assert all(torch.equal(direct[place], tensor) for place, tensor in weights(child.model).items())
    child.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert all(torch.equal(direct[place], tensor) for place, tensor in parameters_of(plain).items())
    again = apply_operation(llama, "dare", tuned=str(tmp_path / "plain"), p=0.5)
    assert again.model.hash == child.model.hash


def test_a_fine_tuned_model_knows_its_parent(llama: wb.model.LanguageModel) -> None:
    corpus = wb.Corpus([tiny.TEXT])
    child = wb.training.fine_tune(llama, corpus, tokens=64, batch=1, context=32)
    assert dare(llama, child, 0.0).model.hash != llama.hash
    grandchild = wb.training.fine_tune(tuned("llama", 7), corpus, tokens=64, batch=1, context=32)
    with pytest.raises(SurgeryError, match="another parent"):
        dare(llama, grandchild, 0.5)


def test_what_cannot_be_merged(llama: wb.model.LanguageModel, zoo, tmp_path: Path) -> None:
    other = tuned("llama", 1)
    for p in (1.0, 1, 1.5, -0.1, float("nan"), True):
        with pytest.raises(SurgeryError, match="from 0 below 1"):
            dare(llama, other, p)
    with pytest.raises(SurgeryError, match="not alike"):
        dare(llama, zoo["gpt2"])
    wider = wb.load_model(tiny.build("llama", intermediate_size=56), tokenizer=tiny.tokenizer())
    with pytest.raises(SurgeryError, match=r"is \[48, 32\].*but \[56, 32\]"):
        dare(llama, wider)
    stranger = wb.load_model(tiny.build("llama", seed=9), tokenizer=tiny.tokenizer())
    with pytest.raises(SurgeryError, match="more than the size of its weights"):
        dare(llama, stranger)
    with pytest.raises(SurgeryError, match="models: 1, weights: 2"):
        dare(llama, [other], weights=[1.0, 2.0])
    with pytest.raises(SurgeryError, match="Give at least one fine-tuned model"):
        dare(llama, [])
    for nothing in (None, [None]):
        with pytest.raises(SurgeryError, match="tuned is a LanguageModel, a Child, a text, a Path or a list of"):
            dare(llama, nothing)  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="no weights"):
        dare(llama, tmp_path)
    with pytest.raises(SurgeryError, match="no folder"):
        apply_operation(llama, "dare", tuned=str(tmp_path / "nowhere"))
    with pytest.raises(Cancelled):
        dare(llama, other, cancel=lambda: True)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SurgeryError, match="can't be read"):
        dare(llama, tmp_path)


@pytest.mark.parametrize("name", ["gpt-neox", "mixtral", "apertus"])
def test_a_folder_is_what_transformers_opens_of_it(name: str, tmp_path: Path) -> None:
    """Files hold tensors that the model makes itself, and one for each expert; settings have their older spelling."""
    model = wb.load_model(architectures.build(name), tokenizer=tiny.tokenizer())
    other = architectures.build(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    other.save_pretrained(tmp_path)
    if name == "gpt-neox":
        legacy = {f"gpt_neox.layers.{n}.attention.rotary_emb.inv_freq": torch.ones(1) for n in range(3)}
        save_file(load_file(tmp_path / FILE) | legacy, tmp_path / FILE, metadata={"format": "pt"})
    wanted = dare(model, wb.load_model(other, tokenizer=tiny.tokenizer()), 0.5)
    assert dare(model, tmp_path, 0.5).model.hash == wanted.model.hash
    same = tmp_path / "same"
    model.network.module.save_pretrained(same)
    assert dare(model, same, 0.0).model.hash == model.hash


def test_rotary_settings_in_their_older_spelling_count(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    tuned("llama", 1).network.module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    for stated in (theta, 5e5):
        (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": stated}))
        if stated == theta:
            assert dare(llama, tmp_path, 0.0).model.hash != llama.hash
        else:
            with pytest.raises(SurgeryError, match="don't compute alike: rope_parameters is"):
                dare(llama, tmp_path, 0.0)
