"""Dictionaries on disk: what is written is what is read, folders of SAELens and for SAELens, bad folders."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.dictionaries.batchtopk import BatchTopKSAE
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import CONFIG, WEIGHTS, DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.normalising import RULES
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.relu import Transcoder
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.dictionaries.trainable import Trainable

KINDS = sorted((k for k in Dictionary.kinds.values() if k.config is not Dictionary.config), key=lambda kind: kind.kind)
"""All kinds with weights of their own."""
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
FIXTURES = Path(__file__).parents[1] / "fixtures" / "saelens"
FOLDERS = [*sorted(FIXTURES.iterdir()), *sorted(FIXTURES.with_name("saelens_inputs").iterdir())]
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_saelens_fixtures.py"
SAELENS = os.environ.get("WORKBENCH_SAELENS_PYTHON", "")


def trained(kind: type[Dictionary]) -> Any:
    """An example with every number different from its start."""
    coder = kind.example()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(64, coder.d_in, generator=generator)
    if isinstance(coder, Trainable):
        coder.initialise(sample)
    for name, tensor in coder.state_dict().items():
        same = name == "activation.threshold" and isinstance(coder, BatchTopKSAE)
        tensor.add_(0.2 * torch.rand(() if same else tensor.shape, generator=generator))
    return coder


@every_kind
def test_saving_and_loading_keeps_every_bit(kind: type[Dictionary], tmp_path: Path) -> None:
    coder = trained(kind)
    coder.reads, coder.writes = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    coder.provenance = {"corpus": "stories", "seed": 3}
    coder.save(tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert type(loaded) is kind
    assert loaded.hash == coder.hash
    assert loaded.config() == coder.config()
    assert (loaded.reads, loaded.writes, loaded.provenance) == (coder.reads, coder.writes, coder.provenance)
    x = torch.randn(20, 8)
    assert torch.equal(loaded.encode(x).dense(), coder.encode(x).dense())
    assert torch.equal(loaded.reconstruct(x), coder.reconstruct(x))
    loaded.save(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    if isinstance(loaded, Trainable):
        assert (loaded.unit_in, loaded.unit_out) == (coder.unit_in, coder.unit_out)
        step, same = loaded.loss_and_gradients(x), coder.loss_and_gradients(x)
        assert (step.loss, step.fired.tolist()) == (same.loss, same.fired.tolist())


@every_kind
def test_half_precision_is_read_as_the_rounded_weights(kind: type[Dictionary], tmp_path: Path) -> None:
    coder = trained(kind)
    coder.save(tmp_path / "whole")
    coder.save(tmp_path / "half", half=True)
    loaded = load_dictionary(tmp_path / "half")
    for name, tensor in coder.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor.half().float())
    half, whole = (load_file(tmp_path / folder / WEIGHTS) for folder in ("half", "whole"))
    assert sum(one.nbytes for one in half.values()) == sum(one.nbytes for one in whole.values()) / 2
    again = tmp_path / "again"
    loaded.save(again, half=True)
    assert load_dictionary(again).hash == loaded.hash, "rounding twice is rounding once"
    next(coder.parameters()).flatten()[0] = 1e6
    with pytest.raises(DictionaryError, match="does not fit into 16 bits"):
        coder.save(tmp_path / "half", half=True)


def test_names_follow_the_folder_unless_given(tmp_path: Path) -> None:
    sae = TopKSAE(8, 16, 2)
    sae.save(tmp_path / "a")
    assert sae.name == str(tmp_path / "a") == load_dictionary(f"{tmp_path}/a/").name
    sae.save(tmp_path / "b")
    assert str(load_dictionary(tmp_path / "b").feature(3)) == f"{tmp_path}/b:3"
    TopKSAE(8, 16, 2, name="mine").save(tmp_path / "c")
    assert load_dictionary(tmp_path / "c").name == "mine"


def test_saving_leaves_other_files_alone(tmp_path: Path) -> None:
    sae = TopKSAE(8, 16, 2)
    sae.save(tmp_path / "d")
    (tmp_path / "d" / "index").mkdir()
    (tmp_path / "d" / "index" / "notes").write_text("mine")
    sae.b_dec.add_(1)
    sae.save(tmp_path / "d")
    assert sorted(part.name for part in (tmp_path / "d").iterdir()) == [CONFIG, "index", WEIGHTS]
    assert (tmp_path / "d" / "index" / "notes").read_text() == "mine"
    assert load_dictionary(tmp_path / "d").hash == sae.hash


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_of_saelens(folder: Path, tmp_path: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    ours = load_dictionary(folder)
    across, here = "transcoder" in folder.name, "attn.hook_z" if folder.name == "heads" else "hook_resid_post"
    assert ours.reads == ("blocks.0.ln2.hook_normalized" if across else f"blocks.0.{here}")
    assert ours.writes == ("blocks.0.hook_mlp_out" if across else f"blocks.0.{here}")
    assert ours.provenance["model_name"] == "tiny"
    for dictionary in (ours, _saved(ours, tmp_path)):
        x = expected["x"]
        torch.testing.assert_close(dictionary.encode(x).dense(), expected["codes"], rtol=0, atol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(x), expected["reconstruction"], rtol=0, atol=1e-5)


def _saved(dictionary: Dictionary, folder: Path) -> Dictionary:
    dictionary.save(folder / "ours")
    return load_dictionary(folder / "ours")


def test_folders_from_before_saelens_6(tmp_path: Path) -> None:
    sae = trained(TopKSAE)
    old = {"d_in": 8, "d_sae": 24, "dtype": "float32", "hook_point": "blocks.3.hook_resid_pre"}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": "none"}
    (tmp_path / CONFIG).write_text(json.dumps(old))
    save_file(sae.tensors() | {"scaling_factor": torch.ones(24)}, tmp_path / WEIGHTS)
    loaded = load_dictionary(tmp_path)
    assert (loaded.kind, loaded.reads) == ("topk", "blocks.3.hook_resid_pre")
    assert loaded.tensors_hash == sae.tensors_hash


@pytest.mark.skipif(not SAELENS, reason="WORKBENCH_SAELENS_PYTHON does not name a Python with sae-lens 6.54")
def test_saelens_reads_our_folders(tmp_path: Path) -> None:
    folders = []
    for kind, rule in itertools.product(KINDS, RULES):
        if not issubclass(kind, SparseCoder):
            continue
        coder = trained(kind)
        coder.reads, coder.writes = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
        coder.normalises = rule
        folder = tmp_path / f"{kind.kind}_{rule}"
        alike = not coder.skip and rule == "none"  # else SAELens has nothing that is the same
        if "groupmax" in kind.kind or kind.kind == "crosscoder" or (kind.kind.startswith("topk_") and not alike):
            with pytest.raises(DictionaryError, match="does not open"):
                coder.save(folder, format="saelens")
            continue
        coder.save(folder, format="saelens")
        x = torch.randn(30, 8)
        made = {"x": x, "codes": coder.encode(x).dense(), "reconstruction": coder.reconstruct(x)}
        save_file(made, folder / "expected.safetensors")
        folders.append(str(folder))
    assert len(folders) > 30
    ended = subprocess.run([SAELENS, str(SCRIPT), "check", *folders], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert ended.stdout.count("differs by at most") == len(folders)


def _edit(folder: Path, **fields: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in (config | fields).items() if v != "gone"}))


def _tensors(folder: Path, **changed: torch.Tensor | None) -> None:
    tensors = load_file(folder / WEIGHTS) | changed
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    config["workbench"].pop("sha256", None)
    (folder / CONFIG).write_text(json.dumps(config))


BAD = {
    "no folder": (
        lambda f: [(f / n).unlink() for n in (CONFIG, WEIGHTS)],
        "is not a dictionary of .*SAELens.*: it is empty",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "it has no sae_weights.safetensors"),
    "torn configuration": (lambda f: (f / CONFIG).write_text('{"d_in": 8,'), "cfg.json is damaged"),
    "binary configuration": (lambda f: (f / CONFIG).write_bytes(b"\xff\x00\x01"), "cfg.json is damaged"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "cfg.json is damaged"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-7]), "damaged or cut short"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "damaged or cut short"),
    "pickled weights": (lambda f: torch.save({}, f / WEIGHTS), "damaged or cut short"),
    "altered weights": (
        lambda f: save_file(load_file(f / WEIGHTS) | {"b_enc": torch.ones(16)}, f / WEIGHTS),
        "its weights are not those that were saved",
    ),
    "missing tensor": (lambda f: _tensors(f, b_enc=None), "its weights lack b_enc"),
    "unknown tensor": (lambda f: _tensors(f, extra=torch.ones(1)), "its weights have an unknown extra"),
    "wrong shape": (lambda f: _tensors(f, b_enc=torch.ones(9)), r"the shape \(9,\), and by its settings it is \(16,\)"),
    "wrong width": (lambda f: _edit(f, d_sae=17), "the shape .* and by its settings it is"),
    "no width": (lambda f: _edit(f, d_sae="gone"), "it lacks 'd_sae'"),
    "width in words": (lambda f: _edit(f, d_sae="many"), "whole number"),
    "impossible k": (lambda f: _edit(f, k=99, workbench={}), "k is a whole number"),
    "unknown kind": (
        lambda f: _edit(f, architecture="mine", workbench={}),
        "kind 'mine', .* it knows batchtopk",
    ),
    "metadata in words": (lambda f: _edit(f, metadata="mine"), "can't be used"),
    "newer": (lambda f: _edit(f, workbench={"format": 2}), "format 2 and this version reads format 1"),
    "run-time norm": (lambda f: _edit(f, normalize_activations="layer_norm"), "altered after it was saved"),
    "scaling": (lambda f: _tensors(f, scaling_factor=torch.zeros(16)), "scaling_factor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_sentence(case: str, tmp_path: Path) -> None:
    spoil, words = BAD[case]
    TopKSAE(8, 16, 2).save(tmp_path / "d")
    spoil(tmp_path / "d")
    with pytest.raises(DictionaryError, match=words) as caught:
        load_dictionary(tmp_path / "d")
    sentence = str(caught.value)
    assert str(tmp_path / "d") in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_altered_settings_are_refused(tmp_path: Path) -> None:
    TopKSAE(8, 16, 2, hook_point="blocks.0.hook_resid_post").save(tmp_path / "d")
    whole = json.loads((tmp_path / "d" / CONFIG).read_text())
    own = whole["workbench"]

    def opened(config: dict[str, Any]) -> Dictionary:
        (tmp_path / "d" / CONFIG).write_text(json.dumps(config))
        return load_dictionary(tmp_path / "d")

    altered = [{"apply_b_dec_to_input": not whole["apply_b_dec_to_input"]}]
    altered += [{"workbench": own | {name: "blocks.1.hook_resid_post"}} for name in ("reads", "writes")]
    altered += [{"k": 3, "workbench": own | {"settings": own["settings"] | {"k": 3}}}]
    for change in altered:
        with pytest.raises(DictionaryError, match=r"altered after it was saved|contradicts itself"):
            opened(whole | change)
    hash = opened(whole).hash
    assert opened(whole | {"workbench": own | {"provenance": {"mine": 1}}}).hash == hash
    older = {name: value for name, value in own.items() if name != "settings_sha256"}
    assert opened(whole | {"workbench": older}).hash == hash


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DictionaryError, match="is a file, and what is saved there is a folder"):
        TopKSAE(8, 16, 2).save(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG).write_text("{}")
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(DictionaryError, match="is not of a dictionary"):
        TopKSAE(8, 16, 2).save(tmp_path / "other")
    assert (tmp_path / "file").read_text() == "in the way"
    sae = TopKSAE(8, 16, 2)
    sae.provenance = {"model": object()}
    with pytest.raises(DictionaryError, match="plain data"):
        sae.save(tmp_path / "d")
    with pytest.raises(DictionaryError, match="no weights of its own"):
        Neurons.example().save(tmp_path / "n")


STRANGERS: list[dict[str, bytes]] = [
    {CONFIG: b'{"lr": 1, "project": "mine"}'},
    {CONFIG: b'{"architecture": "mine"}'},
    {CONFIG: b"lr: 1"},
    {WEIGHTS: b"mine"},
    {CONFIG: b'{"lr": 1}', WEIGHTS: b"mine"},
    {CONFIG: b"lr: 1", WEIGHTS: b"mine"},
    {CONFIG: b'["d_in"]', WEIGHTS: b"mine"},
]


@pytest.mark.parametrize("readme", [True, False])
@pytest.mark.parametrize("files", STRANGERS)
def test_files_of_the_same_name_that_are_no_dictionary_stay(
    files: dict[str, bytes], readme: bool, tmp_path: Path
) -> None:
    files = files | {"README.md": b"mine"} if readme else files
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DictionaryError, match="is not of a dictionary"):
        TopKSAE(8, 16, 2).save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_weights_of_another_program_stay(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / WEIGHTS)
    with pytest.raises(DictionaryError, match="is not of a dictionary"):
        TopKSAE(8, 16, 2).save(tmp_path)
    assert load_file(tmp_path / WEIGHTS)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("damage", [CONFIG, WEIGHTS])
def test_a_damaged_dictionary_is_saved_again(damage: str, tmp_path: Path) -> None:
    sae = TopKSAE(8, 16, 2)
    sae.save(tmp_path)
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:20])
    sae.save(tmp_path)
    assert load_dictionary(tmp_path).hash == sae.hash


def test_the_folder_that_the_process_runs_in_takes_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        sae = TopKSAE(8, 16, 2, seed=seed)
        sae.save(".")
        assert load_dictionary(tmp_path).hash == sae.hash
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_hook_points_in_saelens_fields(tmp_path: Path) -> None:
    heads = TopKSAE(8, 16, 2, hook_point="blocks.2.attn.hook_z")
    assert heads.config()["reshape_activations"] == "hook_z"
    across = Transcoder(8, 16, d_out=4, reads="blocks.0.ln2.hook_normalized", writes="blocks.0.hook_mlp_out")
    assert across.config()["metadata"]["hook_name_out"] == "blocks.0.hook_mlp_out"
    assert TopKTranscoder(8, 16, 2).config()["architecture"] == "topk"
    assert TopKTranscoder(8, 16, 2, d_out=4).config()["architecture"] == "topk_transcoder"
