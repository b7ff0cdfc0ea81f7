"""Dictionaries of sparsify, dictionary_learning and circuit-tracer, in and out: each tool's own output decides."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.module_names import hook_points_of
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sets import load_set

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCRIPTS = Path(__file__).parents[2] / "scripts"
PEERS = {
    "saelens": os.environ.get("WORKBENCH_SAELENS_PYTHON", ""),
    "sparsify": os.environ.get("WORKBENCH_SPARSIFY_PYTHON", ""),
    "dictionary_learning": os.environ.get("WORKBENCH_DICTIONARY_LEARNING_PYTHON", ""),
    "circuit_tracer": os.environ.get("WORKBENCH_CIRCUIT_TRACER_PYTHON", ""),
}
"""A Python with each tool, where there is one."""
TRANSCODERS = {"transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
TOPK = {f"{word}{rest}" for word in ("topk", "groupmax") for rest in ("", "_transcoder", "_skip_transcoder")}
FITS = {
    "saelens": {"standard", "topk", "topk_transcoder", "jumprelu", "batchtopk", "gated", "matryoshka_batchtopk"}
    | TRANSCODERS,
    "sparsify": TOPK,
    "dictionary_learning": {"standard", "transcoder", "topk", "topk_transcoder", "jumprelu", "jumprelu_transcoder"}
    | {"batchtopk", "matryoshka_batchtopk", "gated"},
    "circuit_tracer": TRANSCODERS,
}
"""The kinds that each format has a place for."""
BY_FOLDER = {
    "layers.1": ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
    "layers.1.mlp": ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"),
    "layers.2.mlp": ("blocks.2.mlp.hook_in", "blocks.2.mlp.hook_out"),
    "layers.10.mlp": ("blocks.10.mlp.hook_out", "blocks.10.mlp.hook_out"),
    "h.0.attn": ("blocks.0.attn.hook_out", "blocks.0.attn.hook_out"),
}


def equal(dictionary: Dictionary, expected: dict[str, torch.Tensor]) -> None:
    """Codes and reconstructions are those of the other tool."""
    x = expected["x"]
    torch.testing.assert_close(dictionary.encode(x).dense(), expected["codes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), expected["reconstruction"], rtol=0, atol=1e-5)


def of(name: str) -> list[Path]:
    return sorted(file.parent for file in (FIXTURES / name).rglob("expected.safetensors"))


@pytest.mark.parametrize("folder", of("sparsify"), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_folders_of_sparsify(folder: Path) -> None:
    ours = load_dictionary(folder)
    equal(ours, load_file(folder / "expected.safetensors"))
    assert (ours.reads, ours.writes) == BY_FOLDER[folder.name]
    assert ours.kind.startswith("groupmax" if folder.parent.name == "groupmax" else "topk")


@pytest.mark.parametrize("folder", of("dictionary_learning"), ids=lambda folder: folder.name)
def test_folders_of_dictionary_learning(folder: Path) -> None:
    ours = load_dictionary(folder)
    equal(ours, load_file(folder / "expected.safetensors"))
    assert ours.reads == ours.writes == "blocks.3.hook_resid_post"
    assert ours.provenance["model_name"] == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("folder", sorted((FIXTURES / "circuit_tracer").iterdir()), ids=lambda folder: folder.name)
def test_sets_of_circuit_tracer(folder: Path) -> None:
    found = load_set(folder)
    hooks = {"relu": ("hook_resid_mid", "hook_mlp_out"), "jumprelu": ("ln2.hook_normalized", "hook_mlp_out")}
    reads, writes = hooks.get(folder.name, ("mlp.hook_in", "mlp.hook_out"))
    for layer, ours in enumerate(found):
        equal(ours, load_file(folder / f"expected_{layer}.safetensors"))
        assert (ours.reads, ours.writes) == (f"blocks.{layer}.{reads}", f"blocks.{layer}.{writes}")
        assert ours.provenance["model_name"] == "meta-llama/Llama-3.2-1B"
    assert len(found) == 3


def test_several_dictionaries_come_in_the_order_of_their_layers() -> None:
    run = load_set(FIXTURES / "sparsify" / "topk")
    assert [one.writes.split(".")[1] for one in run] == ["1", "1", "2", "10"]
    assert [Path(one.folder).name for one in load_set(FIXTURES / "dictionary_learning")][-2:] == [
        "trainer_5",
        "trainer_10",
    ]
    with pytest.raises(DictionaryError, match="holds 3 dictionaries"):
        load_dictionary(FIXTURES / "circuit_tracer" / "relu")
    (alone,) = load_set(FIXTURES / "circuit_tracer" / "relu" / "layer_1.safetensors")
    assert alone.reads == "blocks.1.hook_resid_mid"


def test_modules_are_those_of_the_plain_model() -> None:
    """Of each architecture the input and output of the module with that name, by the table of hook points."""
    for name, block, attention in (
        ("llama", "layers.1", "self_attn"),
        ("gpt2", "h.1", "attn"),
        ("neox", "layers.1", "attention"),
    ):
        plain = tiny.build(name)
        points = wb.load_model(plain, tokenizer=tiny.tokenizer()).hook_points
        base = {module: path for path, module in plain.named_modules()}[plain.base_model]
        for module in (block, f"{block}.mlp", f"{block}.{attention}"):
            for side, point in zip(("in", "out"), hook_points_of(module), strict=True):
                assert (points[point].module, points[point].side) == (f"{base}.{module}", side)
    for unknown in ("layers.1.post_attention_layernorm", "layers.1.mlp.act_fn", "norm", "layers.x", "my layers.1"):
        assert hook_points_of(unknown) == ("", "")


def trained(kind: type[Dictionary]) -> Any:
    """An example with every number different from its start, at hook points of one layer."""
    coder: Any = kind.example()
    generator = torch.Generator().manual_seed(0)
    coder.initialise(torch.randn(64, coder.d_in, generator=generator))
    for name, tensor in coder.state_dict().items():
        same = name == "activation.threshold" and "batchtopk" in kind.kind
        tensor.add_(0.2 * torch.rand(() if same else tensor.shape, generator=generator))
    coder.reads, coder.writes = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
    if not coder.transcodes:
        coder.reads = coder.writes = "blocks.0.hook_resid_post"
    coder.provenance = {"model_name": "tiny"}
    return coder


@pytest.mark.parametrize("format", sorted(FITS))
def test_what_is_written_for_others_reads_as_it_was(format: str, tmp_path: Path) -> None:
    x = torch.randn(30, 8)
    for word in sorted(FITS[format]):
        coder = trained(Dictionary.kinds[word])
        coder.save(tmp_path / word, format=format)
        assert coder.folder == ""
        again = load_dictionary(tmp_path / word)
        assert (again.kind, again.reads, again.writes) == (word, coder.reads, coder.writes)
        assert again.provenance["model_name"] == "tiny"
        equal(again, {"x": x, "codes": coder.encode(x).dense(), "reconstruction": coder.reconstruct(x)})
        coder.save(tmp_path / word, format=format)  # over itself
    for word in Dictionary.kinds.keys() - FITS[format]:
        with pytest.raises(DictionaryError, match=r"\.$"):
            Dictionary.kinds[word].example().save(tmp_path / "no", format=format)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("format", sorted(FITS))
def test_others_read_what_we_write(format: str, tmp_path: Path) -> None:
    if not PEERS[format]:
        pytest.skip(f"WORKBENCH_{format.upper()}_PYTHON does not name a Python with it; see make test-peers")
    folders = []
    for word in sorted(FITS[format]):
        coder, folder = trained(Dictionary.kinds[word]), tmp_path / word
        coder.save(folder, format=format)
        x = torch.randn(30, 8)
        made = {"x": x, "codes": coder.encode(x).dense(), "reconstruction": coder.reconstruct(x)}
        save_file(made, folder / ("expected_0.safetensors" if format == "circuit_tracer" else "expected.safetensors"))
        folders.append(str(folder))
    command = [PEERS[format], str(SCRIPTS / f"make_{format}_fixtures.py"), "check", *folders]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert ended.stdout.count("differs by at most") == len(folders)


def test_a_set_that_was_written_explains_a_prediction(tmp_path: Path) -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    for layer in range(model.network.n_layers):
        reads, writes = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.hook_out"
        wb.dictionaries.Transcoder(32, 24, reads=reads, writes=writes, seed=layer).save(
            tmp_path / "s", format="circuit_tracer"
        )
    with pytest.raises(DictionaryError, match="of another model or other hook points"):
        wb.dictionaries.Transcoder(32, 24, reads="blocks.0.hook_resid_mid", writes="blocks.0.mlp.hook_out").save(
            tmp_path / "s", format="circuit_tracer"
        )
    graph = wb.attribute(model, load_set(tmp_path / "s"), "The dog ran")
    assert graph.nodes


def test_a_batch_topk_file_says_what_it_needs(tmp_path: Path) -> None:
    """Without its configuration it may be a TopK dictionary, which computes something else."""
    shutil.copy(FIXTURES / "dictionary_learning" / "trainer_5" / "ae.pt", tmp_path / "ae.pt")
    with pytest.raises(DictionaryError, match="AutoEncoderTopK or BatchTopKSAE"):
        load_dictionary(tmp_path)
    shutil.copy(FIXTURES / "dictionary_learning" / "trainer_3" / "ae.pt", tmp_path / "ae.pt")
    assert load_dictionary(tmp_path).kind == load_dictionary(tmp_path / "ae.pt").kind == "jumprelu"


def test_a_transcoder_of_dictionary_learning_keeps_its_function(tmp_path: Path) -> None:
    for number in (0, 3, 4, 5):
        folder = tmp_path / str(number)
        shutil.copytree(FIXTURES / "dictionary_learning" / f"trainer_{number}", folder)
        _change(folder / "config.json", buffer={"io": "in_and_out"})
        ours = load_dictionary(folder)
        assert ours.transcodes
        assert (ours.reads, ours.writes) == ("", "")  # the file names one module
        equal(ours, load_file(folder / "expected.safetensors"))


def _change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text())
    for name, value in fields.items():
        content[name] = value if not isinstance(content.get(name), dict) else content[name] | value
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))


def _tensors(file: Path, **changed: torch.Tensor | None) -> None:
    tensors = load_file(file) | changed
    save_file({name: one for name, one in tensors.items() if one is not None}, file)


def _state(file: Path, **changed: Any) -> None:
    torch.save(torch.load(file, weights_only=True) | changed, file)


def _packed(file: Path) -> None:
    """The same records, compressed, beside one that is large."""
    with zipfile.ZipFile(file) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in records.items():
            new.writestr(name, content)


GEMMA_2 = "scopes/gemma-scope-2-1b-pt/transcoder/layer_5_width_16k_l0_small_affine"
SPARSIFY, LEARNING, TRACER = "sparsify/topk/layers.1.mlp", "dictionary_learning/trainer_4", "circuit_tracer/jumprelu"
BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "signed": (SPARSIFY, lambda f: _change(f / "cfg.json", signed=True), "values of either sign"),
    "another activation": (SPARSIFY, lambda f: _change(f / "cfg.json", activation="relu"), "activation is 'relu'"),
    "an unknown field": (SPARSIFY, lambda f: _change(f / "cfg.json", gain=2.0), "gain = 2.0, which is not known"),
    "no k": (SPARSIFY, lambda f: _change(f / "cfg.json", k="gone"), "it has no k"),
    "other latents": (SPARSIFY, lambda f: _change(f / "cfg.json", num_latents=25), "has the shape .24, 8."),
    "another width": (SPARSIFY, lambda f: _change(f / "cfg.json", d_in=9), "has the shape .24, 8."),
    "a skip that is not there": (SPARSIFY, lambda f: _change(f / "cfg.json", skip_connection=True), "lacks W_skip"),
    "a skip too many": (SPARSIFY, lambda f: _tensors(f / "sae.safetensors", W_skip=torch.ones(8, 8)), "has 'W_skip'"),
    "cut weights": (SPARSIFY, lambda f: (f / "sae.safetensors").write_bytes(b"\x10"), "damaged or cut short"),
    "groups that don't divide": (
        "sparsify/groupmax/layers.1.mlp",
        lambda f: _change(f / "cfg.json", k=5),
        "divides the width",
    ),
    "code": (LEARNING, lambda f: (f / "ae.pt").write_bytes(pickle.dumps({"a": os.getcwd})), "damaged, or torch before"),
    "a class": (LEARNING, lambda f: torch.save({"a": Path("x")}, f / "ae.pt"), "more than tensors and plain data"),
    "a set": (LEARNING, lambda f: torch.save({"a": {1, 2}}, f / "ae.pt"), "a set beside tensors"),
    "packed records": (LEARNING, lambda f: _packed(f / "ae.pt"), "no file that torch wrote"),
    "values that are not there": (
        LEARNING,
        lambda f: _state(f / "ae.pt", **{"encoder.weight": torch.ones(1).expand(24, 8)}),
        "more values than are there",
    ),
    "a training's state": (
        LEARNING,
        lambda f: torch.save({"ae": {}, "optimizer": {}, "step": 3}, f / "ae.pt"),
        "has not ended",
    ),
    "two numbers k": (LEARNING, lambda f: _change(f / "config.json", trainer={"k": 5}), "says k = 4, and its config"),
    "another class": (
        LEARNING,
        lambda f: _change(f / "config.json", trainer={"dict_class": "IdentityDict"}),
        "Identity",
    ),
    "the class of others": (
        LEARNING,
        lambda f: _change(f / "config.json", trainer={"dict_class": "GatedAutoEncoder"}),
        "lacks decoder_bias",
    ),
    "no threshold": (
        "dictionary_learning/trainer_5",
        lambda f: torch.save({k: v for k, v in torch.load(f / "ae.pt").items() if k != "threshold"}, f / "ae.pt"),
        "depends on the other activations",
    ),
    "a width in the middle": (
        LEARNING,
        lambda f: _state(f / "ae.pt", b_dec=torch.ones(9)),
        "b_dec .* has the shape .9.",
    ),
    "a missing layer": (TRACER, lambda f: (f / "layer_1.safetensors").unlink(), "layer_1.safetensors is missing"),
    "a tag": (TRACER, lambda f: (f / "config.yaml").write_text("a: !!python/name:os.getcwd ''"), "tags are not read"),
    "no hook point": (TRACER, lambda f: _yaml(f, feature_input_hook="../x"), "no name inside a block"),
    "hooks left out": (TRACER, lambda f: _yaml(f, feature_input_hook=None), "should be a valid string"),
    "files elsewhere": (TRACER, lambda f: _yaml(f, transcoders=["hf://a/b/c.npz"]), "names files elsewhere"),
    "a layer of another width": (
        TRACER,
        lambda f: _tensors(f / "layer_1.safetensors", W_dec=torch.ones(24, 9)),
        "W_dec .* has the shape .24, 9.",
    ),
    "a threshold below 0": (
        TRACER,
        lambda f: _tensors(f / "layer_2.safetensors", **{"activation_function.threshold": -torch.ones(24)}),
        "negative values",
    ),
    "no finite number": (
        TRACER,
        lambda f: _tensors(f / "layer_2.safetensors", b_dec=torch.full((8,), torch.nan)),
        "not finite",
    ),
}


def _yaml(folder: Path, **fields: Any) -> None:
    lines = dict(line.split(": ", 1) for line in (folder / "config.yaml").read_text().splitlines())
    lines |= {name: json.dumps(value) for name, value in fields.items()}
    (folder / "config.yaml").write_text("\n".join(f"{name}: {value}" for name, value in lines.items()))


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_sentence(case: str, tmp_path: Path) -> None:
    good, spoil, words = BAD[case]
    shutil.copytree(FIXTURES / good, tmp_path / Path(good).name, ignore=shutil.ignore_patterns("expected*"))
    spoil(tmp_path / Path(good).name)
    with pytest.raises(DictionaryError, match=words) as caught:
        load_set(tmp_path / Path(good).name)
    sentence = str(caught.value)
    assert str(tmp_path) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_an_older_folder_of_sparsify_says_less(tmp_path: Path) -> None:
    """Before `transcode` stood in `cfg.json`, b_dec was subtracted always, and a skip path was one of transcoders."""
    for layer, known in (("layers.1", True), ("layers.10.mlp", False)):
        shutil.copytree(FIXTURES / "sparsify" / "topk" / layer, tmp_path / layer)
        _change(tmp_path / layer / "cfg.json", transcode="gone", activation="gone")
        ours = load_dictionary(tmp_path / layer)
        equal(ours, load_file(tmp_path / layer / "expected.safetensors"))
        assert bool(ours.reads) == known


def test_the_run_of_an_older_folder_says_what_it_is(tmp_path: Path) -> None:
    """The place of an MLP's is open unless the run's file or the caller says it; what is computed is the same."""
    folder = tmp_path / "run" / "layers.1.mlp"
    shutil.copytree(FIXTURES / "sparsify" / "topk" / "layers.1", folder)
    _change(folder / "cfg.json", transcode="gone")
    expected, ends = load_file(folder / "expected.safetensors"), ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")
    for content, places in (
        (None, ("", "")),
        ({"a": 1}, ("", "")),
        ({"sae": {"k": 4}}, (ends[1], ends[1])),
        ({"sae": {"k": 4}, "transcode": True}, ends),
    ):
        if content is not None:
            (tmp_path / "run" / "config.json").write_text(json.dumps(content))
        ours = load_dictionary(folder)
        equal(ours, expected)
        assert (ours.reads, ours.writes) == places
        assert ours.transcodes == (places == ends)
    with pytest.raises(DictionaryError, match=r"that it reads at blocks.1.mlp.hook_in"):
        load_dictionary(folder, hook_point=ends[1])
    (tmp_path / "run" / "config.json").unlink()
    told = load_dictionary(folder, hook_point=ends[0], writes=ends[1])
    equal(told, expected)
    assert (told.reads, told.writes, told.transcodes) == (*ends, True)


def test_a_format_is_called_as_its_tool_is_spelled(tmp_path: Path) -> None:
    ours = load_dictionary(FIXTURES / "circuit_tracer" / "relu" / "layer_0.safetensors")
    ours.save(tmp_path / "set", format="circuit-tracer")
    assert (tmp_path / "set" / "layer_0.safetensors").is_file()


def test_what_is_printed_says_size_and_place() -> None:
    printed = repr(load_dictionary(FIXTURES / "circuit_tracer" / "relu" / "layer_2.safetensors"))
    assert "24 features, 8 → 8, at blocks.2.hook_resid_mid → blocks.2.hook_mlp_out" in printed
    assert "'topk', 16 features, 8 → 8, at no hook point" in repr(wb.TopKSAE(8, 16, 2))


def test_the_names_of_formats_hold_no_comma(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError) as refused:
        load_dictionary(tmp_path)
    assert "dictionary of circuit-tracer, circuit-tracer (cross-layer), DeepSeek" in str(refused.value)


def test_formats_that_are_unknown_or_have_no_place(tmp_path: Path) -> None:
    sae = wb.TopKSAE(8, 16, 2)
    with pytest.raises(DictionaryError, match=r"circuit_tracer, .*not in 'pickle'"):
        sae.save(tmp_path / "x", format="pickle")
    with pytest.raises(DictionaryError, match="leave half out"):
        sae.save(tmp_path / "x", format="sparsify", half=True)
    with pytest.raises(DictionaryError, match="one width for both"):
        wb.dictionaries.TopKTranscoder(8, 16, 2, d_out=6).save(tmp_path / "x", format="sparsify")
    with pytest.raises(DictionaryError, match="two hook points of one layer"):
        wb.dictionaries.Transcoder(8, 16).save(tmp_path / "x", format="circuit_tracer")
    assert not list(tmp_path.iterdir())


def test_what_stands_beside_a_single_file_is_no_way_out(tmp_path: Path) -> None:
    for source, file, config in (
        ("circuit_tracer/jumprelu", "layer_0.safetensors", "config.yaml"),
        ("dictionary_learning/trainer_4", "ae.pt", "config.json"),
        (GEMMA_2, "params.safetensors", "config.json"),
    ):
        folder = tmp_path / file
        shutil.copytree(FIXTURES / source, folder)
        assert wb.load_dictionary(folder / file).reads
        (folder / config).rename(tmp_path / "mine")
        (folder / config).symlink_to(tmp_path / "mine")
        with pytest.raises(DictionaryError, match=f"its {config} is a link out of its folder or no file"):
            wb.load_dictionary(folder / file)
        (folder / config).unlink()
        os.mkfifo(folder / config)
        for path in (folder / file, folder):
            with pytest.raises(DictionaryError):
                wb.load_dictionary(path)


def test_a_layer_is_not_written_through_a_link(tmp_path: Path) -> None:
    layers = [
        wb.dictionaries.Transcoder(8, 16, reads=f"blocks.{n}.mlp.hook_in", writes=f"blocks.{n}.hook_mlp_out")
        for n in (0, 1)
    ]
    layers[0].save(tmp_path / "set", format="circuit_tracer")
    layers[1].save(tmp_path / "other", format="circuit_tracer")
    mine, link = tmp_path / "other" / "layer_1.safetensors", tmp_path / "set" / "layer_1.safetensors"
    before = mine.read_bytes()
    link.symlink_to(mine)
    with pytest.raises(DictionaryError, match="is a link out of its folder"):
        layers[1].save(tmp_path / "set", format="circuit_tracer")
    assert mine.read_bytes() == before
    link.unlink()
    save_file(load_file(mine) | {"precious": torch.zeros(1)}, link)
    with pytest.raises(DictionaryError, match="is no layer of a set"):
        layers[1].save(tmp_path / "set", format="circuit_tracer")
