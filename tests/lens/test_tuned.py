"""The tuned lens against closed forms, plain autograd and the tuned-lens project's own outputs."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
import zoo
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.lens import LensError, TunedLens, fit_tuned_lens, load_lens, measure_lens, read_lens
from workbench.lens.readout import Readout, Reducer
from workbench.lens.streams import read_streams
from workbench.lens.tuned_learner import LensLearner
from workbench.training.processes import Processes

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tuned_lens"
PEER = os.environ.get("WORKBENCH_TUNED_LENS_PYTHON", "")
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tuned_lens_fixtures.py"
TEXTS = wb.Corpus([*tiny.TEXT.strip().split("\n"), "The dog ran. " * 5, "A cat sat."])
OTHERS = wb.Corpus(["The mouse ran to the house and the dog.", "My cat is green", "three small friends of the boat"])
HOW = {"tokens": 200, "batch": 2, "context": 24, "start_tokens": 60}


@pytest.fixture(scope="module")
def model() -> wb.model.LanguageModel:
    return wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def lens(model: wb.model.LanguageModel) -> TunedLens:
    return fit_tuned_lens(model, TEXTS, **HOW)


def linear_model() -> wb.model.LanguageModel:
    """Each layer adds an affine map of the stream: attention writes nothing, and of the MLP neither the activation nor
    the norm bends, whose eps is far above any variance."""
    module = tiny.build("gpt2", activation_function="linear", n_layer=3, layer_norm_epsilon=1e8)
    with torch.no_grad():
        for layer in module.transformer.h:
            layer.attn.c_proj.weight.zero_()
            layer.attn.c_proj.bias.zero_()
            layer.ln_2.weight.mul_(3e3)
        module.transformer.ln_f.weight.mul_(1e4)
    return wb.load_model(module, tokenizer=tiny.tokenizer())


def exact_maps(model: wb.model.LanguageModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A and b of the affine map from the stream behind each layer to the end, from the weights themselves."""
    weight, bias, maps = torch.eye(32), torch.zeros(32), []
    for layer in reversed(model.network.module.transformer.h):
        norm, one, two = layer.ln_2, layer.mlp.c_fc, layer.mlp.c_proj
        inner = (torch.eye(32) - 1 / 32) @ torch.diag(norm.weight / norm.eps**0.5)  # rows times this
        bias = bias + ((norm.bias @ one.weight + one.bias) @ two.weight + two.bias) @ weight
        weight = (torch.eye(32) + inner @ one.weight @ two.weight) @ weight
        maps.append((weight.detach().T - torch.eye(32), bias.detach()))
    return maps[::-1]


def test_a_model_of_affine_layers_has_an_exact_lens_which_the_fit_finds() -> None:
    model = linear_model()
    lens = fit_tuned_lens(model, TEXTS, tokens=240, batch=4, context=32, start_tokens=240)
    exact = exact_maps(model)
    ids = torch.arange(40, 80)
    embedded = model.capture(ids[None], ["blocks.0.hook_resid_pre"])["blocks.0.hook_resid_pre"][0]
    end = model.capture(ids[None], ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"][0]
    torch.testing.assert_close(embedded + embedded @ exact[0][0].T + exact[0][1], end, rtol=1e-4, atol=1e-4)
    found = measure_lens(model, lens, OTHERS)
    assert float(found.kl.value.max()) < 1e-3
    assert float(found.logit_kl.value.min()) > 0.5
    perfect = TunedLens(torch.stack([a for a, _ in exact]), torch.stack([b for _, b in exact]), lens.about)
    assert float(measure_lens(model, perfect, OTHERS).kl.value.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "name", zoo.sample(1, always=("gemma2", "gpt2"), without=[n for n in zoo.ZOO if n != "cohere"])
)
def test_gradients_are_those_of_autograd_through_plain_logits(name: str) -> None:
    """Also behind a soft-cap and a factor of the logits."""
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    learner = LensLearner(model, None, Processes(model.device))  # type: ignore[arg-type]
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        learner.weight.copy_(0.05 * torch.randn(learner.weight.shape, generator=chance))
        learner.bias.copy_(0.05 * torch.randn(learner.bias.shape, generator=chance))
    batch = next(TEXTS.batches(model, 16, 3, seed=1))
    measured, _ = learner.step(batch, None, 0.0, 0.0)
    streams = read_streams(model, learner.readout, batch, learner.layers)
    weight, bias = (one.detach().clone().requires_grad_() for one in learner.parameters())
    module = copy.deepcopy(model.network.module)
    point = model.hook_points["ln_final.hook_out"]
    norm, head = module.get_submodule(point.module), module.get_output_embeddings()

    def logs(normed: torch.Tensor) -> torch.Tensor:
        return model.network.logit_map.logits(head(normed)).log_softmax(-1)

    final = logs(streams.final).detach()
    losses = [
        (final.exp() * (final - logs(norm(h + h @ weight[place].T + bias[place])))).sum(-1).mean()
        for place, h in enumerate(streams.layers)
    ]
    torch.stack(losses).sum().backward()
    assert measured["loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-4)
    torch.testing.assert_close(learner.weight.grad, weight.grad, rtol=1e-3, atol=1e-5 * float(weight.grad.abs().max()))
    torch.testing.assert_close(learner.bias.grad, bias.grad, rtol=1e-3, atol=1e-5 * float(bias.grad.abs().max()))


def test_steps_bring_the_lens_nearer_than_its_start(model: wb.model.LanguageModel) -> None:
    lines: list[float] = []
    fit_tuned_lens(
        model, TEXTS, tokens=800, batch=4, context=24, start_tokens=0, log=lambda one: lines.append(one["loss"])
    )
    assert lines[-1] < 0.75 * lines[0]


def test_a_stopped_fit_goes_on_to_the_same_bits(model: wb.model.LanguageModel, lens: TunedLens, tmp_path: Path) -> None:
    count = itertools.count()
    part = fit_tuned_lens(model, TEXTS, **HOW, folder=tmp_path / "run", cancel=lambda: next(count) > 4)
    assert 0 < part.about.fitted_on["tokens"] < lens.about.fitted_on["tokens"]
    whole = fit_tuned_lens(model, TEXTS, **HOW, folder=tmp_path / "run")
    assert torch.equal(whole.weight, lens.weight)
    assert torch.equal(whole.bias, lens.bias)
    again = load_lens(tmp_path / "run", model)
    assert torch.equal(again.weight, lens.weight)
    with pytest.raises(wb.WorkbenchError, match="holds another training"):
        fit_tuned_lens(model, TEXTS, **HOW | {"lr": 0.5}, folder=tmp_path / "run")


def test_a_model_in_16_bits_is_fitted_in_float32() -> None:
    for name in ("llama", "gpt2"):
        model = wb.load_model(tiny.build(name).bfloat16(), tokenizer=tiny.tokenizer())
        lens = fit_tuned_lens(model, TEXTS, tokens=60, batch=2, context=24)
        assert lens.weight.dtype == torch.float32
        grid = read_lens(model, "The dog ran to", lens)
        assert float(grid.kl[-1].max()) < 0.05
        assert float(grid.kl[:-1].mean()) < float(read_lens(model, "The dog ran to").kl[:-1].mean())


def test_the_measure_is_the_mean_of_the_grids(model: wb.model.LanguageModel, lens: TunedLens) -> None:
    found = measure_lens(model, lens, OTHERS)
    grids = []
    for batch in OTHERS.batches(model, 128, 1, shuffle=False):
        ids = batch.tokens[0]
        for kind in (lens, "logit"):
            first = read_lens(model, ids, kind, at="resid_pre", layers=[0]).kl
            grids.append(torch.cat([first, read_lens(model, ids, kind, layers=[0, 1]).kl])[:, batch.content[0]])
    for which, estimate in enumerate((found.kl, found.logit_kl)):
        torch.testing.assert_close(estimate.value.float(), torch.cat(grids[which::2], 1).mean(1), rtol=1e-4, atol=1e-5)
    assert found.layers == [-1, 0, 1]
    assert found.texts == len(OTHERS.texts)
    assert all(
        low <= float(value) <= high for value, (low, high) in zip(found.kl.value, found.kl.intervals, strict=True)
    )
    assert "tuned lens" in repr(found)


def test_divergences_are_those_of_the_kernel(model: wb.model.LanguageModel) -> None:
    readout = Readout(model)
    one, other = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    reducer = Reducer(readout, 1)
    reducer.begin(one)
    wanted = wb.evaluation.kl_divergence(readout.logits(one), readout.logits(other))
    torch.testing.assert_close(reducer.divergence(other), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reducer.slope(other)[0], wanted, rtol=1e-4, atol=1e-5)


def test_what_is_added_is_read_without_the_bias(model: wb.model.LanguageModel, lens: TunedLens) -> None:
    """The parts of a layer sum to the change of its estimate."""
    text = "The dog ran to"
    parts = [read_lens(model, text, lens, at=at, layers=[1]).streams[0] for at in ("attn_out", "mlp_out")]
    seen = model.capture(model.to_tokens(text), ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
    change = lens.transport(1, seen["blocks.1.hook_resid_post"][0]) - lens.transport(
        1, seen["blocks.1.hook_resid_pre"][0]
    )
    torch.testing.assert_close(sum(parts), change, rtol=1e-3, atol=1e-3)


# ---- files


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_lenses_of_the_project_predict_as_they_do_there(name: str, tmp_path: Path) -> None:
    model = wb.load_model(tiny.build(name), tokenizer=tiny.tokenizer())
    expected = load_file(FIXTURES / name / "expected.safetensors")
    lens = load_lens(FIXTURES / name, model)
    grid = read_lens(model, expected["tokens"], lens, at="resid_pre")
    readout = Readout(model)
    found = readout.logits(readout.normed(grid.streams.flatten(0, 1))).view_as(expected["logits"])
    torch.testing.assert_close(found, expected["logits"], rtol=0, atol=1e-5)
    lens.save(tmp_path / name, format="tuned-lens")
    theirs = torch.load(tmp_path / name / "params.pt", weights_only=True)
    for key, value in torch.load(FIXTURES / name / "params.pt", weights_only=True).items():
        assert torch.equal(theirs[key], value)
    assert load_lens(tmp_path / name, model).about.model_hash == model.hash


@pytest.mark.skipif(not PEER, reason="takes a Python with tuned-lens: make test-peers")
def test_the_project_predicts_as_we_do_with_what_we_wrote(tmp_path: Path) -> None:
    for name in ("llama", "gpt2", "neox"):
        model = wb.load_model(tiny.build(name), tokenizer=tiny.tokenizer())
        lens = fit_tuned_lens(model, TEXTS, **HOW)
        lens.save(tmp_path / name, format="tuned-lens")
        tokens = torch.tensor([5, 9, 11, 30, 7, 2])
        streams = read_lens(model, tokens, lens, at="resid_pre").streams
        readout = Readout(model)
        logits = torch.stack([readout.logits(readout.normed(row)) for row in streams])
        save_file({"tokens": tokens, "logits": logits}, tmp_path / name / "expected.safetensors")
    done = subprocess.run(
        [PEER, SCRIPT, "check", *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_lens_is_saved_and_opened_and_keeps_what_it_belongs_to(
    model: wb.model.LanguageModel, lens: TunedLens, tmp_path: Path
) -> None:
    lens.save(tmp_path / "lens")
    again = load_lens(tmp_path / "lens", model)
    assert torch.equal(again.weight, lens.weight)
    assert again.about == lens.about
    lens.save(tmp_path / "lens", half=True)
    half = load_lens(tmp_path / "lens", model)
    assert half.weight.dtype == torch.float16
    assert half.transport(0, torch.ones(1, 32)).dtype == torch.float32


def test_the_lens_that_is_kept_for_this_very_model_is_found(
    model: wb.model.LanguageModel, lens: TunedLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    lens.save(tmp_path / "lenses" / "mine")
    other = wb.load_model(tiny.build("llama", seed=3), tokenizer=tiny.tokenizer())
    fit_tuned_lens(other, TEXTS, **HOW).save(tmp_path / "lenses" / "others")
    grid = read_lens(model, "The dog ran", "tuned")
    torch.testing.assert_close(grid.kl, read_lens(model, "The dog ran", lens).kl)
    assert wb.lens.measure_early_exit(model, OTHERS, "tuned")[0].tokens > 0
    assert torch.equal(load_lens("others", other).weight[0], load_lens(tmp_path / "lenses" / "others", other).weight[0])
    lens.save(tmp_path / "lenses" / "twice")
    with pytest.raises(LensError, match="Several tuned lenses are kept for LlamaForCausalLM: mine, twice"):
        read_lens(model, "The dog ran", "tuned")


def test_what_can_not_be_is_refused_in_a_sentence(
    model: wb.model.LanguageModel, lens: TunedLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    other = wb.load_model(tiny.build("llama", seed=3), tokenizer=tiny.tokenizer())
    wide = wb.load_model(tiny.build("llama", num_hidden_layers=2), tokenizer=tiny.tokenizer())
    lens.save(tmp_path / "lens")
    theirs = tmp_path / "theirs"
    shutil.copytree(FIXTURES / "llama", theirs)

    def changed(**fields: object) -> Path:
        content = json.loads((FIXTURES / "llama" / "config.json").read_text()) | fields
        (theirs / "config.json").write_text(json.dumps(content))
        return theirs

    cases = [
        (lambda: read_lens(other, "The dog", lens), "was fitted to"),
        (lambda: load_lens(tmp_path / "lens", other), "was fitted to"),
        (lambda: load_lens(tmp_path / "lens", wide), "for another model"),
        (lambda: load_lens(FIXTURES / "llama", other), "LM head is not that of"),
        (lambda: load_lens(changed(unembed_hash=None), model), "states no unembed_hash"),
        (lambda: load_lens(changed(include_input=True), model), "'include_input'"),
        (lambda: load_lens(changed(lens_type="mlp"), model), "lens type 'mlp'"),
        (lambda: load_lens(changed(num_hidden_layers=2), model), "does not hold 2 maps"),
        (lambda: load_lens(changed(d_model=16), model), r"no tensor of floating-point numbers \[16, 16\]"),
        (lambda: load_lens(tmp_path / "nothing", model), "There is no folder"),
        (lambda: load_lens(tmp_path, model), "is not a lens of"),
        (lambda: read_lens(model, "The dog", "tuned"), "No tuned lens is kept for"),
        (lambda: read_lens(model, "The dog", lens, at="resid_mid"), "not at resid_mid"),
        (lambda: wb.lens.LogitLens().save(tmp_path / "x"), "no weights to save"),
        (lambda: lens.save(tmp_path / "x", format="other"), "formats .*tuned_lens, workbench"),
        (lambda: lens.transport(7, torch.ones(32)), "reads behind the layers -1 to 1, not behind 7"),
        (lambda: measure_lens(model, lens, TEXTS), "was fitted on texts"),
        (lambda: TunedLens(1e6 * lens.weight, lens.bias, lens.about).save(tmp_path / "x", half=True), "16 bits"),
    ]
    for act, words in cases:
        with pytest.raises(LensError, match=words):
            act()
    with model.intervening([wb.Clamp("neurons.1.post:3", 2.0)]), pytest.raises(LensError, match="Interventions act"):
        fit_tuned_lens(model, TEXTS, **HOW)
    with pytest.raises(wb.training.TrainingError, match="nothing to learn from"):
        fit_tuned_lens(model, wb.Corpus(["a"]), tokens=10)
