"""Dictionaries at several hook points: acting, learning and measuring, against plain hooks and autograd."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import workbench as wb
from workbench.dictionaries import Crosscoder, CrossLayerTranscoder, DictionaryError
from workbench.dictionaries.formats import circuit_tracer_cross_layer
from workbench.dictionaries.jumprelu import JumpReLU
from workbench.measures.firing import active_features

pytestmark = pytest.mark.usefixtures("tiny_cache")
D, N, LAYERS = 32, 12, 3
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_cross_layer_fixtures.py"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "circuit_tracer_cross_layer"
TOKENS = torch.arange(9)[None] * 37 % tiny.VOCAB
READS = " + ".join(f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS))
WRITES = " + ".join(f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS))


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny.build("llama")


@pytest.fixture(scope="module")
def model(_tiny_cache: Path) -> wb.model.LanguageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        return wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())


def transcoder(skip: bool = False) -> CrossLayerTranscoder:
    """Three layers with random weights and thresholds."""
    made = CrossLayerTranscoder(
        LAYERS * D, LAYERS * N, layers=LAYERS, skip=skip, reads=READS, writes=WRITES, name="clt"
    )
    chance = torch.Generator().manual_seed(5)
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=chance)
        tensor.copy_(0.05 * noise.abs() if "threshold" in name else 0.3 * noise)
    return made


def codes_of(clt: CrossLayerTranscoder, layer: int, x: Tensor) -> Tensor:
    """A layer's codes `[..., N]`, densely."""
    pre = x @ clt.W_enc_T[layer].T + clt.b_enc[layer]
    return pre * (pre > clt.activations[layer].threshold)


class ByHand:
    """Hooks on a plain model: each MLP's output is replaced, or gets the differences of edited codes.

    Args:
        edit: from a layer's codes `[batch, pos, N]` to the edited ones.
    """

    def __init__(self, plain: Any, clt: CrossLayerTranscoder, edit: Any, *, splices: bool):
        self.plain, self.clt, self.edit, self.splices = plain, clt, edit, splices

    def logits(self, tokens: Tensor) -> Tensor:
        written: dict[int, tuple[Tensor, Tensor]] = {}

        def hook(layer: int) -> Any:
            def after(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                codes = codes_of(self.clt, layer, args[0])
                written[layer] = codes, self.edit(layer, codes.clone())
                made = self.clt.b_dec[layer] + torch.zeros_like(output)
                if self.clt.skip:
                    made = made + args[0] @ self.clt.W_skip[layer]
                change = torch.zeros_like(output)
                for source, (before, now) in written.items():
                    rows = self.clt.W_dec[source][:, layer - source]  # [N, D]
                    made, change = made + before @ rows, change + (now - before) @ rows
                return (made if self.splices else output) + change

            return after

        handles = [block.mlp.register_forward_hook(hook(n)) for n, block in enumerate(self.plain.model.layers)]
        try:
            with torch.no_grad():
                return self.plain(input_ids=tokens, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()


def at(layer: int, index: int, value: float) -> Any:
    """An edit that sets one latent of a layer."""

    def edit(here: int, codes: Tensor) -> Tensor:
        if here == layer:
            codes[..., index] = value
        return codes

    return edit


def both(*edits: Any) -> Any:
    def edit(here: int, codes: Tensor) -> Tensor:
        for one in edits:
            codes = one(here, codes)
        return codes

    return edit


def unchanged(_layer: int, codes: Tensor) -> Tensor:
    return codes


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_a_splice_sums_the_sources_at_or_before_each_layer(skip: bool, plain: Any, model: Any) -> None:
    clt = transcoder(skip)
    with model.spliced({"blocks.1.hook_mlp_out": clt}):
        found = model(TOKENS)
        edited = [wb.Clamp(clt.feature(N + 2), 3.0), wb.Clamp(clt.feature(1), 2.0)]
        with model.intervening(edited):
            under = model(TOKENS)
    wanted = ByHand(plain, clt, unchanged, splices=True).logits(TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    changed = both(at(1, 2, 3.0), at(0, 1, 2.0))
    torch.testing.assert_close(under, ByHand(plain, clt, changed, splices=True).logits(TOKENS), rtol=1e-4, atol=1e-4)
    assert float((under - found).abs().max()) > 1e-2


def test_an_intervention_adds_the_difference_at_every_layer_written(plain: Any, model: Any) -> None:
    clt = transcoder()
    for edits, changed in (
        ([wb.Clamp(clt.feature(1), 4.0)], at(0, 1, 4.0)),
        ([wb.Clamp(clt.feature(2 * N + 5), -1.0)], at(2, 5, -1.0)),
        ([wb.Clamp(clt.feature(3), 4.0), wb.Clamp(clt.feature(N + 7), 2.0)], both(at(0, 3, 4.0), at(1, 7, 2.0))),
    ):
        with model.intervening(edits):
            found = model(TOKENS)
        wanted = ByHand(plain, clt, changed, splices=False).logits(TOKENS)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert float((found - model(TOKENS)).abs().max()) > 1e-3


def test_the_cache_and_positions(plain: Any, model: Any) -> None:
    clt = transcoder()
    edit, tokens = wb.Clamp(clt.feature(1), 4.0), TOKENS
    hand = ByHand(plain, clt, at(0, 1, 4.0), splices=False)
    found = model.generate(TOKENS, max_new_tokens=5, interventions=[edit])
    for _ in range(5):
        tokens = torch.cat([tokens, hand.logits(tokens)[:, -1:].argmax(-1)], 1)
    assert found.tokens == tokens[0, TOKENS.shape[1] :].tolist()
    with model.intervening([wb.Steer(clt.feature(N + 1), 2.0, positions=(2, 3))]):
        some = model(TOKENS)
    assert torch.equal(some[:, :2], model(TOKENS)[:, :2])
    assert float((some - model(TOKENS))[:, 2:].abs().max()) > 1e-3


def test_a_change_of_nothing_leaves_every_bit(model: Any) -> None:
    clt = transcoder()
    with model.intervening([wb.Scale(clt.feature(index), 1.0) for index in range(LAYERS * N)]):
        found = model(TOKENS)
    assert torch.equal(found, model(TOKENS))


def prepared(skip: bool) -> tuple[CrossLayerTranscoder, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(40, 12, generator=chance, dtype=torch.float64) + 2
    target = x @ torch.randn(12, 12, generator=chance, dtype=torch.float64)
    made = CrossLayerTranscoder(12, 18, layers=3, skip=skip, l0=0.3).double()
    made.initialise(x, target)
    for name, tensor in made.state_dict().items():
        noise = torch.rand(tensor.shape, generator=chance, dtype=torch.float64)
        tensor.add_(0.2 * noise * made.unit_out if "threshold" in name else 0.3 * (noise - 0.5))
    made.constrain()
    return made, x, target


class Jump(torch.autograd.Function):
    """JumpReLU and its count, with the straight-through gradients of arXiv 2407.14435, equations 11 and 12."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, band: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.band = band
        above = (pre > threshold).to(pre.dtype)
        return pre * above, above

    @staticmethod
    def backward(ctx: Any, by_value: Tensor, by_count: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < ctx.band / 2).to(pre.dtype) / ctx.band
        by_threshold = (-threshold * kernel * by_value - kernel * by_count).sum(0)
        return by_value * (pre > threshold), by_threshold, None


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_gradients_agree_with_autograd(skip: bool) -> None:
    coder, x, target = prepared(skip)
    step = coder.loss_and_gradients(x, target)
    ours = {name: one.grad.clone() for name, one in coder.named_parameters() if one.grad is not None}
    coder.zero_grad()
    coder.requires_grad_()
    unit, reads = coder.unit_out, x.chunk(3, 1)
    with torch.enable_grad():
        values, penalty = [], torch.zeros((), dtype=torch.float64)
        for layer, read in enumerate(reads):
            part: Any = coder.activations[layer]
            assert isinstance(part, JumpReLU)
            pre = read @ coder.W_enc_T[layer].T + coder.b_enc[layer]
            value, count = Jump.apply(pre, part.threshold, part.bandwidth * unit)
            values.append(value)
            penalty = penalty + part.l0 * count.sum(1).mean()
        made = [
            sum(values[source] @ coder.W_dec[source][:, layer - source] for source in range(layer + 1))
            + coder.b_dec[layer]
            + (reads[layer] @ coder.W_skip[layer] if skip else 0)
            for layer in range(3)
        ]
        loss = (torch.cat(made, 1) - target).square().sum(1).mean() / unit**2 + penalty
        loss.backward()
    assert step.loss == pytest.approx(loss.item(), rel=1e-9)
    for layer in range(3):
        rows = coder.W_dec[layer].detach().flatten(1)
        gradient = coder.W_dec[layer].grad.flatten(1)
        gradient -= (gradient * rows).sum(1, keepdim=True) * rows
    assert set(ours) == {name for name, _ in coder.named_parameters()}
    for name, parameter in coder.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_training_on_a_model_and_measuring(plain: Any, model: Any, tmp_path: Path) -> None:
    corpus = wb.Corpus([f"The dog ran to the river {n} times and again." for n in range(12)], "twelve")
    made = CrossLayerTranscoder(LAYERS * D, LAYERS * N, l0=0.02, layers=LAYERS)
    how: dict[str, Any] = {"tokens": 1500, "context": 16, "batch_size": 64, "block": 256, "lr": 3e-3}
    lines: list[Any] = []
    wb.train(made, model, READS, corpus, target=WRITES, log=lines.append, **how)
    assert (made.reads, made.writes) == (READS, WRITES)
    assert lines[-1]["fvu"] < 0.8 * lines[0]["fvu"]
    found = wb.measure_fidelity(model, made, corpus, tokens=400, context=16)
    assert found.fvu == pytest.approx(lines[-1]["fvu"], abs=0.15)
    with pytest.raises(DictionaryError, match=r"reads at 3 hook points, each another, .* names 1"):
        wb.train(
            CrossLayerTranscoder(LAYERS * D, 36, layers=3), model, "blocks.0.mlp.hook_in", corpus, target=WRITES, **how
        )
    made.save(tmp_path / "clt")
    opened: Any = wb.load_dictionary(tmp_path / "clt")
    assert (opened.hash, opened.reads, opened.writes) == (made.hash, READS, WRITES)


def side_by_side(parts: Tensor) -> Tensor:
    """`[layers, n, width]` as `[n, layers * width]`."""
    return torch.cat(list(parts), -1)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "halves"])
def test_folders_of_circuit_tracer(name: str, tmp_path: Path) -> None:
    expected = load_file(FIXTURES / f"{name}.safetensors")
    opened: Any = wb.load_dictionary(FIXTURES / name)
    assert opened.read_points == tuple(f"blocks.{layer}.hook_resid_mid" for layer in range(3))
    assert opened.write_points == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    assert opened.provenance["model_name"] == "a-model"
    circuit_tracer_cross_layer.write(opened, tmp_path / "again")
    for one in (opened, wb.load_dictionary(tmp_path / "again")):
        x = side_by_side(expected["x"])
        torch.testing.assert_close(one.encode(x).dense(), side_by_side(expected["codes"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(one.reconstruct(x), side_by_side(expected["reconstruction"]), rtol=0, atol=1e-5)
        for index in (1, 14, 30):
            layer, latent = divmod(index, 12)
            row = load_file(FIXTURES / name / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"][latent].float()
            assert torch.equal(one.direction(index), torch.cat([torch.zeros(8 * layer), row.flatten()]))
    assert {one.name for one in (tmp_path / "again").iterdir()} == {one.name for one in (FIXTURES / name).iterdir()}


def test_circuit_tracer_reads_what_we_write(tmp_path: Path) -> None:
    python = os.environ.get("WORKBENCH_CIRCUIT_TRACER_PYTHON", "")
    if not python:
        pytest.skip("WORKBENCH_CIRCUIT_TRACER_PYTHON does not name a Python with it; see make test-peers")
    made = transcoder()
    made.save(tmp_path / "clt", format="circuit_tracer_cross_layer")
    x = torch.randn(10, LAYERS * D)
    outputs = {"x": x, "codes": made.encode(x).dense(), "reconstruction": made.reconstruct(x)}
    each = {name: torch.stack(one.chunk(LAYERS, -1)).contiguous() for name, one in outputs.items()}
    save_file(each, tmp_path / "clt.safetensors")
    command = [python, str(SCRIPT), "check", str(tmp_path / "clt")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


@pytest.mark.parametrize("name", ["width_36_l0_small", "width_36_l0_small_affine"])
def test_folders_of_gemma_scope_2(name: str, tmp_path: Path) -> None:
    folder = FIXTURES / "gemma-scope-2-1b-pt" / "clt" / name
    expected = load_file(folder.parent / f"{name}.safetensors")
    opened: Any = wb.load_dictionary(folder)
    assert opened.read_points == tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(3))
    assert opened.write_points == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    assert opened.provenance["model_name"] == "google/gemma-3-1b-pt"
    opened.save(tmp_path / "again")
    for one in (opened, wb.load_dictionary(tmp_path / "again")):
        x = side_by_side(expected["x"])
        torch.testing.assert_close(one.encode(x).dense(), side_by_side(expected["codes"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(one.reconstruct(x), side_by_side(expected["reconstruction"]), rtol=0, atol=1e-5)
    shutil.copytree(folder, tmp_path / "clt" / name)
    (tmp_path / "clt" / name / "params_layer_2.safetensors").unlink()
    with pytest.raises(DictionaryError, match=r"w_dec in params_layer_0\.safetensors has the shape .* 2 layers"):
        wb.load_dictionary(tmp_path / "clt" / name)


def test_a_set_of_single_layers_below_a_folder_clt_is_circuit_tracers(tmp_path: Path) -> None:
    one = wb.dictionaries.Transcoder(8, 16, reads="blocks.0.mlp.hook_in", writes="blocks.0.mlp.hook_out")
    one.save(tmp_path / "clt" / "set", format="circuit_tracer")
    assert wb.load_dictionary(tmp_path / "clt" / "set").kind == "transcoder"


def test_faulty_folders_of_circuit_tracer_are_one_sentence(tmp_path: Path) -> None:
    def altered(change: Any) -> Path:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        shutil.copytree(FIXTURES / "jumprelu", tmp_path / "d")
        change(tmp_path / "d")
        return tmp_path / "d"

    def with_tensor(file: str, name: str, change: Any) -> Any:
        def write(folder: Path) -> None:
            tensors = load_file(folder / file)
            tensors[name] = change(tensors[name]).contiguous()
            save_file(tensors, folder / file)

        return write

    def say(text: str) -> Any:
        return lambda folder: (folder / "config.yaml").write_text(text)

    whole = (FIXTURES / "jumprelu" / "config.yaml").read_text()
    for words, change in (
        (r"W_enc_1\.safetensors is missing", lambda folder: (folder / "W_enc_1.safetensors").unlink()),
        (r"W_dec_2\.safetensors is missing", lambda folder: (folder / "W_dec_2.safetensors").unlink()),
        (r"no config\.yaml", lambda folder: (folder / "config.yaml").unlink()),
        ("tags are not read", say(whole + "more: !!python/object:os.system x\n")),
        (
            r"could be a dictionary of circuit-tracer or circuit-tracer \(cross-layer\)",
            say(whole.replace("cross_layer_transcoder", "transcoder_set")),
        ),
        ("feature_input_hook", say("model_kind: cross_layer_transcoder\nfeature_output_hook: hook_mlp_out\n")),
        ("no name inside a block", say(whole.replace("hook_resid_mid", "'0 + 1'"))),
        (r"W_dec_1 has the shape \(12, 1, 8\)", with_tensor("W_dec_1.safetensors", "W_dec_1", lambda one: one[:, :1])),
        (r"b_enc_0 has the shape \(11,\)", with_tensor("W_enc_0.safetensors", "b_enc_0", lambda one: one[:11])),
        ("not finite", with_tensor("W_enc_2.safetensors", "W_enc_2", lambda one: one / 0)),
        ("below 0", with_tensor("W_enc_2.safetensors", "threshold_2", lambda one: -one)),
        ("torch.int64", with_tensor("W_enc_2.safetensors", "b_dec_2", lambda one: one.long())),
        ("damaged or cut short", lambda folder: (folder / "W_dec_0.safetensors").write_bytes(b"1234567890")),
    ):
        with pytest.raises(DictionaryError, match=words):
            wb.load_dictionary(altered(change))
    lazily: Any = wb.load_dictionary(altered(with_tensor("W_dec_1.safetensors", "W_dec_1", lambda one: one / 0)))
    with pytest.raises(DictionaryError, match=r"W_dec of layer 1 .* not finite"):
        lazily.direction(12)
    assert lazily.direction(1).isfinite().all()
    with pytest.raises(DictionaryError, match="not finite"):
        lazily.reconstruct(torch.randn(5, 24))


def crosscoder(reads: str, writes: str) -> Crosscoder:
    made = Crosscoder(2 * D, 20, points=2, reads=reads, writes=writes, name="cross")
    chance = torch.Generator().manual_seed(8)
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=chance)
        tensor.copy_(0.05 * noise.abs() if "threshold" in name else 0.3 * noise)
    return made


def test_a_crosscoder_that_reads_first_acts(plain: Any, model: Any) -> None:
    made = crosscoder("blocks.0.mlp.hook_in + blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out + blocks.2.hook_mlp_out")
    reads = [reference.seen_at(plain, plain.model.layers[layer].mlp, "in", TOKENS)[0] for layer in (0, 1)]
    x = torch.cat(reads, -1)  # [pos, 2 * D]
    codes = made.encode(x)
    pieces = (made.decode(codes.with_value(3, torch.full((9,), 2.0))) - made.decode(codes)).chunk(2, -1)
    remade = made.reconstruct(x).chunk(2, -1)

    def under(values: Any, *, adds: bool) -> Tensor:
        edits = []
        for layer, value in zip((1, 2), values, strict=True):
            each = itertools.cycle(value)
            change = (lambda old, each=each: old + next(each)) if adds else (lambda _, each=each: next(each)[None])
            edits.append(reference.PlainEdit(plain.model.layers[layer].mlp, "out", change))
        return reference.logits_under(plain, TOKENS, edits)

    with model.intervening([wb.Clamp(made.feature(3), 2.0)]):
        torch.testing.assert_close(model(TOKENS), under(pieces, adds=True), rtol=1e-4, atol=1e-4)
    with model.spliced({"blocks.2.hook_mlp_out": made}):
        torch.testing.assert_close(model(TOKENS), under(remade, adds=False), rtol=1e-4, atol=1e-4)


def test_a_crosscoder_that_writes_before_it_has_read_can_only_steer(plain: Any, model: Any) -> None:
    points = "blocks.0.hook_resid_post + blocks.1.hook_resid_post"
    made = crosscoder(points, points)
    late = r"cross can't act: the model computes blocks\.0\.hook_resid_post, .* before blocks\.1\.hook_resid_post"
    for refused in (wb.Clamp(made.feature(3), 2.0), wb.Scale(made.feature(3), 2.0), wb.Ablate(made.feature(3))):
        with pytest.raises(DictionaryError, match=late), model.intervening([refused]):
            pass
    with pytest.raises(DictionaryError, match=late), model.spliced({"blocks.0.hook_resid_post": made}):
        pass
    with pytest.raises(DictionaryError, match=late):
        wb.measure_fidelity(model, made, wb.Corpus(["The dog ran to the river."], "one"))
    steered = [wb.Steer(made.feature(3), 1.5, positions=(2, 4)), wb.Steer(made.feature(5), -1.0)]
    one, two = made.direction(3).chunk(2), made.direction(5).chunk(2)
    edits = []
    for layer in (0, 1):
        edits.append(reference.PlainEdit(plain.model.layers[layer], "out", lambda x, v=one[layer]: x + 1.5 * v, (2, 4)))
        edits.append(reference.PlainEdit(plain.model.layers[layer], "out", lambda x, v=two[layer]: x - v))
    with model.intervening(steered):
        found = model(TOKENS)
    torch.testing.assert_close(found, reference.logits_under(plain, TOKENS, edits), rtol=1e-4, atol=1e-4)
    with pytest.raises(DictionaryError, match=late), model.intervening([*steered, wb.Clamp(made.feature(3), 2.0)]):
        pass


def test_steering_is_baked_at_every_layer_written(plain: Any, model: Any) -> None:
    clt = transcoder()
    edits = [wb.Steer(clt.feature(N + 2), 1.5)]
    with model.intervening(edits):
        wanted = model(TOKENS)
    child = wb.bake(model, edits)
    torch.testing.assert_close(child.model(TOKENS), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(wb.WorkbenchError, match="depends on the input"):
        wb.bake(model, [wb.Clamp(clt.feature(2), 1.0)])
    with pytest.raises(wb.WorkbenchError, match="writes at 3 hook points, in no one direction"):
        wb.surgery.direction_of(model, clt.feature(2))


def test_tokens_that_are_promoted_are_those_of_all_layers_written_together(
    plain: Any, model: Any, tmp_path: Path
) -> None:
    clt = transcoder()
    corpus = wb.Corpus([f"The dog ran to the river {n} times and again." for n in range(6)], "six")
    index = wb.build_index(model, clt, corpus, tmp_path / "index", context=16)
    head, gain = plain.lm_head.weight.detach(), plain.model.norm.weight.detach()
    for feature in (1, N + 4, 2 * N):
        written = clt.direction(feature).view(LAYERS, D).sum(0) * gain
        scores = head @ written
        tokens = wb.load_model(plain, tokenizer=tiny.tokenizer()).token_texts(scores.topk(3).indices.tolist())
        assert [one.token for one in index.feature(feature).promoted[:3]] == tokens
    fired = active_features(model, [clt], "The dog ran.")
    assert any(one.features for one in fired)
