"""Dictionaries as the classes of dictionary_learning: the class that computes the same, and its tensors.

`dictionary_learning_classes.py` is the way back. A centre that a class subtracts and the dictionary does not, or the
other way round, goes into the encoder's bias.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.files import replacing
from workbench.core.torch_files import write_torch
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary

_LAYER = re.compile(r"blocks\.(\d{1,6})\.(.+)")


def write_class(dictionary: Dictionary, folder: Path, files: Sequence[str]) -> None:
    """Write a dictionary's configuration and state, as tensors under plain names.

    Args:
        dictionary: of a kind that a class computes.
        folder: a new one, or one that holds these files alone.
        files: the names of the two.

    Raises:
        DictionaryError: no class computes the same, or the folder can't be written.
    """
    word, state = _stated(dictionary)
    found = _LAYER.fullmatch(dictionary.writes)
    same = dictionary.reads == dictionary.writes
    residual = same and found is not None and found[2] == "hook_resid_post"
    trainer = {
        "dict_class": word,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.n_features,
        "layer": int(found[1]) if found else None,
        "lm_name": dictionary.provenance.get("model_name"),
        "submodule_name": f"resid_post_layer_{int(found[1])}" if found and residual else dictionary.writes or None,
    }
    if "k" in state:
        trainer["k"] = int(state["k"])
    config = {"trainer": trainer, "workbench": {"reads": dictionary.reads, "writes": dictionary.writes}}
    with replacing(folder, DictionaryError, own=files) as new:
        new.mkdir()
        write_torch(new / files[1], state)
        (new / files[0]).write_text(json.dumps(config, indent=4), encoding="utf-8")


def _stated(dictionary: Dictionary) -> tuple[str, dict[str, Tensor]]:
    """The class and its state."""
    kind = dictionary.kind.removesuffix("_transcoder")
    kind = "standard" if kind == "transcoder" else kind
    own = dict(dictionary.tensors())
    writer = _WRITERS.get(kind)
    if writer is None or "W_skip" in own:
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, and no class of dictionary_learning computes that; "
            "save it in another format."
        )
    config = dictionary.config()
    if dictionary.d_in != dictionary.d_out:
        raise DictionaryError(
            f"{dictionary.name} reads {dictionary.d_in:,} values and writes {dictionary.d_out:,}, and "
            "dictionary_learning has one width for both."
        )
    if config["normalize_activations"] != "none":
        raise DictionaryError(f"{dictionary.name} normalises activations first, which dictionary_learning does not.")
    settings = config["workbench"]["settings"]
    return writer({name: one.detach() for name, one in own.items()}, config["apply_b_dec_to_input"], settings)


def _bias(own: dict[str, Tensor], centred: bool, wanted: bool) -> Tensor:
    """The encoder's bias of a class that subtracts `b_dec` from its input, or does not."""
    if centred == wanted:
        return own["b_enc"]
    centre = own["b_dec"] @ own["W_enc"]
    return own["b_enc"] + centre if wanted else own["b_enc"] - centre


def _linear(own: dict[str, Tensor], bias: Tensor) -> dict[str, Tensor]:
    return {"encoder.weight": own["W_enc"].T, "encoder.bias": bias, "decoder.weight": own["W_dec"].T}


def _standard(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Of norm 1, which the loader of AutoEncoder makes of decoder rows; else AutoEncoderNew, which leaves them."""
    norms = own["W_dec"].norm(dim=1)
    if centred and torch.allclose(norms, torch.ones_like(norms)):
        return "AutoEncoder", _linear(own, own["b_enc"]) | {"bias": own["b_dec"]}
    return "AutoEncoderNew", _linear(own, _bias(own, centred, False)) | {"decoder.bias": own["b_dec"]}


def _jumprelu(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    names = ("W_enc", "W_dec", "b_dec", "threshold")
    return "JumpReluAutoEncoder", {name: own[name] for name in names} | {"b_enc": _bias(own, centred, False)}


def _topk(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    state = _linear(own, _bias(own, centred, True)) | {"b_dec": own["b_dec"]}
    state |= {"k": torch.tensor(settings["k"], dtype=torch.int), "threshold": torch.tensor(-1.0)}
    return "AutoEncoderTopK", state


def _batchtopk(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """With one threshold and a whole k; else the JumpReLU dictionary that computes the same."""
    if not _has_one_threshold(own) or float(settings["k"]) % 1:
        return _jumprelu(own, centred, settings)
    state = _linear(own, _bias(own, centred, True)) | {"b_dec": own["b_dec"]}
    return "BatchTopKSAE", state | _counted(own, settings)


def _matryoshka(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    if not _has_one_threshold(own) or float(settings["k"]) % 1:
        return _jumprelu(own, centred, settings)
    widths = torch.tensor([0, *settings["widths"]])
    state = {name: own[name] for name in ("W_enc", "W_dec", "b_dec")} | {"b_enc": _bias(own, centred, True)}
    return "MatryoshkaBatchTopKSAE", state | _counted(own, settings) | {"group_sizes": widths.diff()}


def _gated(own: dict[str, Tensor], centred: bool, settings: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """The encoder of the gates: that of the magnitudes without their gain."""
    gain, bias = own["r_mag"].exp(), _bias(own, centred, True)
    gate = (bias - own["threshold"]) / gain
    state = {"encoder.weight": (own["W_enc"] / gain).T, "decoder.weight": own["W_dec"].T, "decoder_bias": own["b_dec"]}
    return "GatedAutoEncoder", state | {"r_mag": own["r_mag"], "gate_bias": gate, "mag_bias": bias}


def _has_one_threshold(own: dict[str, Tensor]) -> bool:
    return bool((own["threshold"] == own["threshold"][0]).all())


def _counted(own: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    return {"k": torch.tensor(int(settings["k"]), dtype=torch.int), "threshold": own["threshold"][0].clone()}


_WRITERS = {
    "standard": _standard,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "batchtopk": _batchtopk,
    "matryoshka_batchtopk": _matryoshka,
    "gated": _gated,
}
"""By the kind, or that of which a transcoder has the activation function."""
