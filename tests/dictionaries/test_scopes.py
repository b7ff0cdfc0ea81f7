"""Dictionaries as their publishers release them compute what SAELens's loaders make of the same files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.formats import llama_scope, llama_scope_r1
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import format_of

SCOPES = Path(__file__).parents[1] / "fixtures" / "scopes"
EXPECTED = sorted(SCOPES.rglob("*expected.safetensors"))
NAMES = {"blocks.5.hook_mlp_in": "blocks.5.mlp.hook_in"}
"""Hook points that SAELens calls otherwise: its name is one of the stream, and the file names the norm's output."""
MODELS = {"gemma-2-2b": "google/gemma-2-2b"}
GEMMA = SCOPES / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_5"
GEMMA_2 = SCOPES / "gemma-scope-2-1b-pt" / "transcoder" / "layer_5_width_16k_l0_small_affine"
LLAMA = SCOPES / "Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L4R-8x"
GOODFIRE = SCOPES / "Llama-3.1-8B-Instruct-SAE-l19"
QWEN = SCOPES / "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5"


def place(expected: Path) -> Path:
    """What the outputs are of: a folder, or a file beside them."""
    if expected.name == "expected.safetensors":
        return expected.parent
    stem = expected.name.removesuffix(".expected.safetensors")
    return next(file for file in expected.parent.iterdir() if file.stem == stem)


def opened(path: Path) -> Dictionary:
    if "R1-Distill" in str(path) and path.is_dir():
        return llama_scope_r1.read(path, {"norm_scaling_factor": 0.6})
    return load_dictionary(path)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda one: str(place(one).relative_to(SCOPES)))
def test_outputs_are_those_of_saelens(expected: Path, tmp_path: Path) -> None:
    with safe_open(expected, "pt") as file:
        said = file.metadata()
    wanted = load_file(expected)
    path = place(expected)
    ours = opened(path)
    hook = NAMES.get(said["hook_name"], said["hook_name"])
    assert (ours.reads, ours.writes) == (hook, said["hook_name_out"] or hook)
    if "R1-Distill/" not in str(path):  # its files do not say which model
        assert ours.provenance["model_name"] == MODELS.get(said["model_name"], said["model_name"])
    reconstruction = wanted["reconstruction"]
    if "embedding" in path.parts:  # SAELens leaves this bias in units of the table's rows
        root = ours.d_in**0.5
        reconstruction = reconstruction + (1 - 1 / root) * ours.b_dec
    torch.testing.assert_close(ours.encode(wanted["x"]).dense(), wanted["codes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(wanted["x"]), reconstruction, rtol=0, atol=1e-5)
    ours.save(tmp_path)
    again = load_dictionary(tmp_path)
    assert again.hash == ours.hash
    assert torch.equal(again.reconstruct(wanted["x"]), ours.reconstruct(wanted["x"]))


def test_folders_of_several_and_of_one() -> None:
    with pytest.raises(DictionaryError, match=r"holds 2 dictionaries, layer2\.sae\.pt and layer10\.sae\.pt"):
        load_dictionary(QWEN)
    assert load_dictionary(GOODFIRE).hash == load_dictionary(next(GOODFIRE.glob("*.pth"))).hash
    assert load_dictionary(GEMMA / "params.npz").hash == load_dictionary(GEMMA).hash


def test_llama_scope_with_every_field_of_its_publisher(tmp_path: Path) -> None:
    folder = tmp_path / LLAMA.name
    shutil.copytree(LLAMA, folder)
    whole = {"norm_activation": "dataset-wise", "use_glu_encoder": False, "use_decoder_bias": True}
    config("hyperparams.json", **whole, apply_decoder_bias_to_pre_encoder=False)(folder)
    plain = load_dictionary(LLAMA)
    assert load_dictionary(folder).hash == plain.hash
    stated = llama_scope.read(folder, {"norm_scaling_factor": 2.0})  # of a list of releases
    weight = load_file(folder / "checkpoints" / "final.safetensors")["encoder.weight"]
    torch.testing.assert_close(stated.tensors()["W_enc"], 2 * weight.T)


def arrays(**changed: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        whole = dict(np.load(folder / "params.npz")) | changed
        np.savez(folder / "params.npz", **{name: one for name, one in whole.items() if one is not None})

    return spoil


def config(name: str, **changed: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        whole = json.loads((folder / name).read_text()) | changed
        (folder / name).write_text(json.dumps(whole))

    return spoil


def params(**changed: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        whole = load_file(folder / "params.safetensors") | changed
        save_file({name: one for name, one in whole.items() if one is not None}, folder / "params.safetensors")

    return spoil


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name("layer_6_width_16k"))


def packed(folder: Path) -> None:
    np.savez_compressed(folder / "params.npz", **np.load(folder / "params.npz"))


def cut(folder: Path) -> None:
    (folder / "params.npz").write_bytes((folder / "params.npz").read_bytes()[:-40])


def flipped(folder: Path) -> None:
    content = bytearray((folder / "params.npz").read_bytes())
    content[600] ^= 1
    (folder / "params.npz").write_bytes(content)


BAD: dict[str, tuple[Path, Callable[[Path], Any], str]] = {
    "an object array": (GEMMA, arrays(b_dec=np.array([{}], dtype=object)), "holds Python objects"),
    "a packed array": (GEMMA, packed, "is packed; save the arrays with numpy.savez"),
    "a cut file": (GEMMA, cut, "is damaged"),
    "words": (GEMMA, arrays(b_dec=np.array(["a"] * 8)), "no array of numbers"),
    "another order of bytes": (GEMMA, arrays(b_dec=np.zeros(8, ">f4")), "no array of numbers that are read"),
    "a flipped bit": (GEMMA, flipped, "its checksum is another one"),
    "no numbers": (GEMMA, arrays(b_dec=np.full(8, np.nan, np.float32)), "b_dec holds values that are not finite"),
    "another width": (GEMMA, arrays(b_enc=np.zeros(9, np.float32)), r"b_enc has the shape \(9,\)"),
    "a missing array": (GEMMA, arrays(threshold=None), "lack threshold"),
    "an unknown array": (GEMMA, arrays(extra=np.zeros(3, np.float32)), "an unknown extra"),
    "a scale": (GEMMA, arrays(scaling_factor=np.full(16, 2, np.float32)), "scaling_factor"),
    "another decoder": (GEMMA, arrays(W_dec=np.zeros((16, 7), np.float32), b_dec=np.zeros(7, np.float32)), "W_dec has"),
    "no skip path": (GEMMA_2, params(affine_skip_connection=None), "lack affine_skip_connection"),
    "a skip path unsaid": (GEMMA_2, config("config.json", affine_connection=False), "have affine_skip_connection"),
    "several layers": (GEMMA_2, params(w_dec=torch.zeros(16, 3, 8)), "writes at several layers"),
    "another function": (GEMMA_2, config("config.json", architecture="topk"), "architecture is 'topk'"),
    "an unknown module": (GEMMA_2, config("config.json", hf_hook_point_in="model.norm"), "no place that is known"),
    "another layer": (
        GEMMA_2,
        config("config.json", hf_hook_point_in="model.layers.6.pre_feedforward_layernorm.output"),
        "and its folder layer 5",
    ),
    "another norm": (LLAMA, config("hyperparams.json", norm_activation="token-wise"), "norm_activation = 'token-wise'"),
    "two places": (LLAMA, config("hyperparams.json", hook_point_out="blocks.4.hook_mlp_out"), "a transcoder's"),
    "no norm": (LLAMA, config("hyperparams.json", dataset_average_activation_norm={}), "does not say the dataset_"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_sentence(case: str, tmp_path: Path) -> None:
    source, spoil, words = BAD[case]
    copy = tmp_path / source.relative_to(SCOPES)
    shutil.copytree(source, copy)
    spoil(copy)
    with pytest.raises(DictionaryError, match=words) as caught:
        load_dictionary(copy)
    assert str(caught.value).startswith(str(copy))
    assert "\n" not in str(caught.value)


def test_what_only_names_say_is_not_guessed(tmp_path: Path) -> None:
    shutil.copytree(GEMMA, tmp_path / "mine" / "layer_3")
    with pytest.raises(DictionaryError, match="keep Gemma Scope's names"):
        load_dictionary(tmp_path / "mine" / "layer_3")
    shutil.copy(next(QWEN.glob("layer2*.pt")), tmp_path)
    with pytest.raises(DictionaryError, match="keep Qwen Scope's name"):
        load_dictionary(tmp_path / "layer2.sae.pt")
    with pytest.raises(DictionaryError, match="by the release and id"):
        load_dictionary(SCOPES / "Llama-Scope-R1-Distill" / "L7R")


def test_each_has_one_format() -> None:
    for expected in EXPECTED:
        assert format_of(place(expected))


def test_a_caller_says_what_files_do_not(tmp_path: Path) -> None:
    """The same codes as in the publisher's folders; another place than the files' is refused."""
    openai = SCOPES / "resid_post_mlp_v5_32k" / "autoencoders" / "6.pt"
    for source in (GEMMA / "params.npz", openai):
        copy = tmp_path / "mine" / source.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(source, copy)
        with pytest.raises(DictionaryError, match="say it: load_dictionary"):
            load_dictionary(copy)
        ours = load_dictionary(copy, hook_point="blocks.2.hook_resid_mid", model_name="me/my-model")
        assert (ours.reads, ours.writes) == ("blocks.2.hook_resid_mid",) * 2
        assert ours.provenance["model_name"] == "me/my-model"
        x = torch.randn(5, ours.d_in)
        assert torch.equal(ours.encode(x).dense(), load_dictionary(source).encode(x).dense())
    moved = tmp_path / "mine" / "params.npz"
    both = load_dictionary(moved, hook_point="blocks.2.ln2.hook_normalized", writes="blocks.2.hook_mlp_out")
    assert (both.kind, both.writes) == ("jumprelu_transcoder", "blocks.2.hook_mlp_out")
    scaled = load_dictionary(moved, hook_point="hook_embed")
    root = scaled.d_in**0.5
    torch.testing.assert_close(scaled.encode(x := torch.randn(5, scaled.d_in)).dense(), ours_at(moved, x / root))
    for how, words in (
        ({"hook_point": "blocks.3.hook_resid_mid"}, "its files say that it reads at"),
        ({"writes": "blocks.3.hook_resid_mid"}, "writes stands beside hook_point"),
        ({"model_name": "gpt2"}, "its files say that it was made for google/gemma-2-2b"),
    ):
        with pytest.raises(DictionaryError, match=words):
            load_dictionary(GEMMA, **how)
    same = load_dictionary(GEMMA, hook_point="blocks.3.hook_resid_post", model_name="gemma-2-2b")
    assert same.provenance["model_name"] == "google/gemma-2-2b"
    shutil.copytree(GEMMA_2, tmp_path / "two")
    (tmp_path / "two" / "config.json").unlink()
    with pytest.raises(DictionaryError, match="say it: load_dictionary"):
        load_dictionary(tmp_path / "two")
    places = {"hook_point": "blocks.1.mlp.hook_in", "writes": "blocks.1.hook_mlp_out"}
    assert load_dictionary(tmp_path / "two", **places).kind == "jumprelu_skip_transcoder"


def ours_at(path: Path, x: torch.Tensor) -> torch.Tensor:
    return load_dictionary(path, hook_point="blocks.0.hook_resid_pre").encode(x).dense()


def test_what_openais_files_may_hold(tmp_path: Path) -> None:
    good = torch.load(SCOPES / "resid_post_mlp_v5_32k" / "autoencoders" / "6.pt", weights_only=True)
    state = {"activation_state_dict": {"k": 4, "postact_fn": "Identity"}}
    for change, words in (
        ({"activation": "Identity"}, "activation is 'Identity'"),
        (state, "then applies 'Identity'"),
        ({"activation_state_dict": {"k": True, "postact_fn": "ReLU"}}, "keeps True latents"),
        ({"more": torch.zeros(2)}, "unknown more"),
        ({"pre_bias": torch.full((8,), torch.nan)}, "not finite"),
    ):
        torch.save({**good, **change}, tmp_path / "0.pt")
        with pytest.raises(DictionaryError, match=words):
            load_dictionary(tmp_path / "0.pt", hook_point="blocks.0.hook_resid_post")
    folder = tmp_path / "crosscoder" / "layer_1_2"
    folder.mkdir(parents=True)
    save_file({"w_enc": torch.zeros(2, 2)}, folder / "params_layer_0.safetensors")
    with pytest.raises(DictionaryError, match="crosscoder of Gemma Scope 2"):
        load_dictionary(folder)
