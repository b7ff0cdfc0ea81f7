"""What a `cfg.json` of any version of SAELens says is what the dictionary computes, or the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.dictionaries.codebook import Codebook
from workbench.dictionaries.folder import CONFIG, WEIGHTS, DictionaryError
from workbench.dictionaries.key_value import KeyValueBottleneck
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.relu import Transcoder
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder

D, WIDTH = 8, 40
OLD: dict[str, Any] = {
    "d_in": D,
    "d_sae": WIDTH,
    "dtype": "float32",
    "device": "cuda",
    "model_name": "gpt2-small",
    "hook_name": "blocks.3.hook_resid_pre",
    "hook_layer": 3,
    "hook_head_index": None,
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": "4.4.5",
    "prepend_bos": True,
    "dataset_path": "somewhere/texts",
    "dataset_trust_remote_code": True,
    "context_size": 128,
    "seqpos_slice": [None],
    "normalize_activations": "none",
    "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {"center_writing_weights": False},
}
"""As SAELens 3 to 5 wrote it, without its architecture and activation function."""
RELU: dict[str, Any] = {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}}
TOP: dict[str, Any] = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
NEW: dict[str, Any] = {"d_in": D, "d_sae": WIDTH, "normalize_activations": "none", "reshape_activations": "none"}
NEW |= {
    "apply_b_dec_to_input": True,
    "metadata": {"sae_lens_version": "6.22.0", "hook_name": "blocks.3.hook_resid_pre"},
}
X = torch.randn(30, D, generator=torch.Generator().manual_seed(1))


def weights() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def written(folder: Path, config: dict[str, Any], **more: Tensor) -> Path:
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))
    save_file(weights() | more, folder / WEIGHTS)
    return folder


def computed(k: int | None = None, centred: bool = True, threshold: float | None = None, factor: Any = 1.0) -> Any:
    """Codes and reconstruction by the formula."""
    w = weights()
    pre = (X - w["b_dec"] if centred else X) @ w["W_enc"] + w["b_enc"]
    codes = pre.relu()
    if k is not None:
        codes = codes * (pre >= pre.topk(k).values[:, -1:])
    if threshold is not None:
        codes = codes * (pre > threshold)
    return codes, (codes * factor) @ w["W_dec"] + w["b_dec"]


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "5, ReLU": (OLD | RELU, {}),
    "3, standard with topk": (OLD | TOP | {"architecture": "standard"}, {"k": 3}),
    "5, topk": (OLD | TOP | {"architecture": "topk"}, {"k": 3}),
    "before architectures, topk": (OLD | TOP, {"k": 3}),
    "before architectures, ReLU": (OLD | {"activation_fn_str": "relu"}, {}),
    "2, under its first name": (
        OLD | {"activation_fn": "relu", "hook_name": "gone", "hook_point": "blocks.3.hook_resid_pre"},
        {},
    ),
    "0.5, before activation functions": (
        OLD | {"finetuning_scaling_factor": "gone", "use_ghost_grads": True, "normalize_activations": False},
        {},
    ),
    "5, not centred": (OLD | RELU | {"apply_b_dec_to_input": False}, {"centred": False}),
    "2, centred though it does not say so": (OLD | RELU | {"apply_b_dec_to_input": "gone"}, {}),
    "6, topk": (NEW | {"architecture": "topk", "k": 5}, {"k": 5}),
    "6, ReLU": (NEW | {"architecture": "standard", "l1_coefficient": 3.0, "noise_scale": 0.0}, {}),
    "an unknown field that says nothing": (OLD | RELU | {"whitening": None, "tricks": {}}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_the_file_says_is_computed(form: str, tmp_path: Path) -> None:
    config, how = FORMS[form]
    dictionary = load_dictionary(written(tmp_path, config))
    codes, out = computed(**how)
    assert dictionary.reads == "blocks.3.hook_resid_pre"
    torch.testing.assert_close(dictionary.encode(X).dense(), codes, atol=1e-5, rtol=0)
    torch.testing.assert_close(dictionary.reconstruct(X), out, atol=1e-4, rtol=0)
    dictionary.save(tmp_path / "again")
    torch.testing.assert_close(load_dictionary(tmp_path / "again").reconstruct(X), out, atol=1e-4, rtol=0)


def test_a_transcoder_whose_file_does_not_say_where_it_writes_writes_nowhere(tmp_path: Path) -> None:
    ours = Transcoder(8, 16, reads="blocks.0.mlp.hook_in", writes="blocks.0.hook_mlp_out")
    ours.save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config.pop("workbench")
    assert config["metadata"].pop("hook_name_out")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    found = load_dictionary(tmp_path)
    assert (found.reads, found.writes) == ("blocks.0.mlp.hook_in", "")
    ours.writes = ""
    ours.save(tmp_path / "ours")
    assert load_dictionary(tmp_path / "ours").hash == ours.hash


def test_thresholds_and_factors_of_fine_tuning(tmp_path: Path) -> None:
    jump = OLD | RELU | {"architecture": "jumprelu"}
    dictionary = load_dictionary(written(tmp_path, jump, threshold=torch.full((WIDTH,), 0.7)))
    torch.testing.assert_close(dictionary.encode(X).dense(), computed(threshold=0.7)[0], atol=1e-5, rtol=0)
    factor = 0.5 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(2))
    codes, out = computed(factor=factor)
    for name, stated in (("scaling_factor", "gone"), ("finetuning_scaling_factor", True), ("scaling_factor", True)):
        config = OLD | RELU | {"finetuning_scaling_factor": stated}
        tuned = load_dictionary(written(tmp_path, config, **{name: factor}))
        torch.testing.assert_close(tuned.encode(X).dense(), codes, atol=1e-5, rtol=0)
        torch.testing.assert_close(tuned.reconstruct(X), out, atol=1e-4, rtol=0)
    ones = load_dictionary(written(tmp_path, OLD | RELU, scaling_factor=torch.ones(WIDTH)))
    torch.testing.assert_close(ones.reconstruct(X), computed()[1], atol=1e-4, rtol=0)


TANH = {"activation_fn_str": "tanh-relu", "activation_fn_kwargs": {}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "topk without k": (OLD | TOP | {"activation_fn_kwargs": {}}, "does not say k"),
    "topk of version 6 without k": (NEW | {"architecture": "topk"}, "does not say k"),
    "two k": (OLD | TOP | {"architecture": "topk", "k": 9}, "says k = 9 and k = 3"),
    "k for ReLU": (NEW | {"architecture": "standard", "k": 9}, "standard has no k"),
    "topk that says ReLU": (OLD | RELU | {"architecture": "topk", "k": 3}, "topk with the activation function relu"),
    "version 6 that says both": (
        NEW | TOP | {"architecture": "standard"},
        "standard with the activation function topk",
    ),
    "jumprelu of the k highest": (
        OLD | TOP | {"architecture": "jumprelu"},
        "jumprelu with the activation function topk",
    ),
    "another function": (OLD | TANH | {"architecture": "standard"}, "tanh-relu, which is no kind"),
    "two functions": (OLD | RELU | {"activation_fn": "topk"}, "two activation functions, relu and topk"),
    "another function behind topk": (
        OLD | TOP | {"activation_fn_kwargs": {"k": 3, "postact_fn": "Identity"}},
        "an argument that is not known here, postact_fn",
    ),
    "normalised": (OLD | RELU | {"normalize_activations": "expected_average_only_in"}, "no activation_scaler.json"),
    "normalised before 3": (OLD | RELU | {"normalize_activations": True}, "no activation_scaler.json"),
    "whitened": (
        NEW | {"architecture": "standard", "normalize_activations": "covariance_whitening"},
        "no activation_whitening.safetensors",
    ),
    "normalised, and writes elsewhere": (
        NEW
        | {"architecture": "transcoder", "d_out": D, "apply_b_dec_to_input": False}
        | {"normalize_activations": "expected_average_only_in"},
        "does not say how what it writes is scaled",
    ),
    "of many tokens": (NEW | {"architecture": "temporal"}, "from those of earlier tokens"),
    "gated without a gate": (NEW | {"architecture": "gated"}, "weights lack b_gate"),
    "a kind of normalisation not known": (
        NEW | {"architecture": "standard", "normalize_activations": "x"},
        "normalised",
    ),
    "one head": (OLD | RELU | {"hook_head_index": 4}, "one head alone"),
    "one head of version 1": (OLD | {"hook_point_head_index": 0}, "one head alone"),
    "one head of version 6": (
        NEW | {"architecture": "standard", "metadata": NEW["metadata"] | {"hook_head_index": 2}},
        "one head alone",
    ),
    "reshaped": (NEW | {"architecture": "standard", "reshape_activations": "hook_z"}, "reshapes activations"),
    "noise": (OLD | RELU | {"noise_scale": 0.1}, "adds noise"),
    "rescaled ReLU": (NEW | {"architecture": "standard", "rescale_acts_by_decoder_norm": True}, "rescale_acts"),
    "a field not known": (OLD | RELU | {"input_temperature": 2.0}, "input_temperature = 2.0, which is not known"),
    "centred by a word": (OLD | RELU | {"apply_b_dec_to_input": "false"}, "(is|should be) true or false"),
    "half centred": (OLD | RELU | {"apply_b_dec_to_input": 0.5}, "(is|should be) true or false"),
    "a centred transcoder": (NEW | {"architecture": "transcoder", "d_out": D}, "which a transcoder does not"),
    "signed": (NEW | {"architecture": "abstopk", "k": 3}, "of either sign"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_does_not_fit_is_one_sentence(form: str, tmp_path: Path) -> None:
    config, words = REFUSED[form]
    with pytest.raises(DictionaryError, match=words) as caught:
        load_dictionary(written(tmp_path, config))
    assert str(caught.value).startswith(f"{tmp_path} can't be used: ")


def test_factors_that_the_file_denies(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="says that there is none"):
        load_dictionary(written(tmp_path, OLD | RELU, scaling_factor=torch.full((WIDTH,), 2.0)))


OURS = {
    "topk": (TopKSAE(8, 16, 2), {"k": 5, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": None}),
    "topk_transcoder": (TopKTranscoder(8, 16, 2), {"k": 5, "apply_b_dec_to_input": True, "architecture": "standard"}),
    "codebook": (Codebook(8, 6, k=2, groups=2), {"d_sae": 10, "architecture": "topk"}),
    "key_value": (KeyValueBottleneck(8, 4, codebooks=3, n_keys=5, d_key=2), {"d_sae": 10}),
}
"""A dictionary of ours, and fields that would say something else."""


@pytest.mark.parametrize("name", OURS)
def test_our_own_settings_are_all_there(name: str, tmp_path: Path) -> None:
    dictionary, others = OURS[name]
    dictionary.save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())

    def refused(changed: dict[str, Any]) -> None:
        (tmp_path / CONFIG).write_text(json.dumps(changed))
        with pytest.raises(DictionaryError):
            load_dictionary(tmp_path)

    for setting in config["workbench"]["settings"]:
        settings = {key: value for key, value in config["workbench"]["settings"].items() if key != setting}
        refused(config | {"workbench": config["workbench"] | {"settings": settings}})
    for field, value in others.items():
        refused(config | {field: value})
    refused(config | {"input_temperature": 2.0})
    save_file(load_file(tmp_path / WEIGHTS) | {"scaling_factor": torch.ones(16)}, tmp_path / WEIGHTS)
    refused(config)
