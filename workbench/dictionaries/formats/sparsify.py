"""Folders of EleutherAI's sparsify, called `sae` before: `cfg.json` and `sae.safetensors`, and whole runs of these.

A run has a folder for each hook point, named as the module of the Hugging Face model: `layers.5`, `layers.5.mlp`; with
several seeds, a folder `seedN` in each. An autoencoder reads and writes the module's output; a transcoder reads its
input and writes its output.

Versions: before 2025-02-12 `transcode` did not stand in `cfg.json`, and b_dec was subtracted from the input of
everything, transcoders too; today's loader reads such files so. From 2024-11-13 on the run's `config.json`, in the
folder above, said whether it was one of transcoders. Where neither says it, a dictionary of a part of a block may be
either, and its place stays open; whole blocks are read as autoencoders, as today's trainer does. Source: https://github.com/EleutherAI/sparsify,
`sparsify/config.py`, `sparsify/sparse_coder.py` (1.3.3).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, with_config
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Positive
from workbench.core.files import replacing
from workbench.core.forms import parse_json, read_text
from workbench.core.type_words import shown
from workbench.dictionaries.coder import ROWS
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.foreign import Said, check_beside
from workbench.dictionaries.module_names import hook_points_of
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.remembered import hold_finite
from workbench.dictionaries.weights_file import check_names, check_shapes, read_weights

TITLE = "sparsify"
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
FILES = (CONFIG, WEIGHTS)
RUN, CODER = "config.json", "sae"
"""The file of a whole run, and a field of it that other tools' files of this name lack."""
HARMLESS = ("normalize_decoder", "multi_topk")
"""Fields that decide nothing of what a trained dictionary computes; the decoder is saved as it is used."""
SEED = re.compile("seed[0-9]{1,9}")
"""Name of a folder in that of a hook point, in a run with several seeds."""


@with_config(ConfigDict(extra="allow"))
class Place(TypedDict):
    """Our own part: the hook points of a dictionary that was written here."""

    reads: str
    writes: str
    model_name: NotRequired[str | None]


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `cfg.json` that decide."""

    d_in: Positive
    k: Positive
    activation: NotRequired[str]
    num_latents: NotRequired[Natural]
    expansion_factor: NotRequired[Natural]
    skip_connection: NotRequired[bool]
    transcode: NotRequired[bool]
    signed: NotRequired[bool]
    workbench: NotRequired[Place]


@with_config(ConfigDict(extra="allow"))
class Run(TypedDict):
    """The field of a run's `config.json` that decides."""

    transcode: NotRequired[bool]


def matches(path: Path) -> bool:
    """Whether a folder has the two files, or folders with them."""
    return _is_one(path) or bool(parts(path))


def parts(path: Path) -> list[Path]:
    """The folders of a run, in the order of the layers; empty for a single dictionary."""
    if not path.is_dir() or _is_one(path):
        return []
    inner = [one for one in path.iterdir() if one.is_dir()]
    seeds = [two for one in inner if not _is_one(one) for two in one.iterdir() if SEED.fullmatch(two.name)]
    return sorted((one for one in [*inner, *seeds] if _is_one(one)), key=lambda one: _natural(str(one)))


def read(path: Path, said: Said | None = None) -> Dictionary:
    """The dictionary in the folder; its hook points are those that the folder's name says, where it says any.

    Args:
        path: the folder.
        said: what a caller says of its place.

    Raises:
        DictionaryError: a file is damaged, a field or tensor does not fit, or it computes what has no kind here. The
            message does not name the folder.
    """
    text = read_text(path / CONFIG, DictionaryError, "a configuration")
    config = parse_json(text, Config, DictionaryError, f"its {CONFIG} is not sparsify's")
    _check_fields(config)
    tensors = read_weights(path / WEIGHTS, ("encoder.weight", "W_dec"))
    names = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | (
        {"W_skip"} if config.get("skip_connection") else set()
    )
    check_names(tensors, WEIGHTS, names, frozenset())
    width = _width(config)
    shapes = {"encoder.weight": (width, config["d_in"]), "encoder.bias": (width,), "W_dec": (width, config["d_in"])}
    shapes |= {"b_dec": (config["d_in"],), "W_skip": (config["d_in"], config["d_in"])}
    check_shapes(tensors, WEIGHTS, shapes, f"its {CONFIG} with d_in = {config['d_in']} and {width:,} latents")
    transcodes = config["transcode"] if "transcode" in config else _of_run(path)
    if transcodes is None and said is not None and said.reads:
        transcodes = said.writes not in ("", said.reads)
    dictionary = _built(config, tensors, width, transcodes=bool(transcodes))
    _place(dictionary, config, path, transcodes)
    return dictionary


def _of_run(path: Path) -> bool | None:
    """Whether the run that an older dictionary is of was one of transcoders; None where no file of it is there.

    Raises:
        DictionaryError: its `config.json` is damaged.
    """
    real = path.absolute()
    file = (real.parent.parent if SEED.fullmatch(real.name) else real.parent) / RUN
    check_beside(file)
    if not file.is_file():
        return None
    text = read_text(file, DictionaryError, "the configuration of a run")
    if f'"{CODER}"' not in text:  # of something else
        return None
    return parse_json(text, Run, DictionaryError, f"the {RUN} of its run is not sparsify's").get("transcode", False)


def module_of(path: Path) -> str:
    """The name of the module that a folder is named after."""
    real = path.absolute()
    return real.parent.name if SEED.fullmatch(real.name) else real.name


def _place(dictionary: Dictionary, config: Config, path: Path, transcodes: bool | None) -> None:
    """Set hook points and record as the files and the folder's name state them; what they do not say stays empty."""
    if "workbench" in config:
        own = config["workbench"]
        dictionary.reads, dictionary.writes = own["reads"], own["writes"]
        if model := own.get("model_name"):
            dictionary.provenance["model_name"] = model
        return
    dictionary.provenance["module"] = module_of(path)
    reads, writes = hook_points_of(module_of(path))
    if transcodes is None and (config.get("skip_connection") or not writes.endswith("hook_resid_post")):
        return
    dictionary.reads, dictionary.writes = reads if transcodes else writes, writes


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary of one of the TopK or GroupMax kinds as sparsify saves it.

    Raises:
        DictionaryError: the kind, its widths or a setting has no place in this format, or the folder can't be written.
    """
    activation = _activation(dictionary)
    if dictionary.d_in != dictionary.d_out:
        raise DictionaryError(
            f"{dictionary.name} reads {dictionary.d_in:,} values and writes {dictionary.d_out:,}, and sparsify has one "
            "width for both."
        )
    config, own = dictionary.config(), dictionary.tensors()
    skip = "W_skip" in own
    tensors = {"encoder.weight": own["W_enc"].T, "encoder.bias": own["b_enc"], "W_dec": own["W_dec"]}
    tensors |= {name: own[name] for name in ("b_dec", "W_skip") if name in own}
    content = {
        "activation": activation,
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": dictionary.n_features,
        "k": config["k"],
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": not config["apply_b_dec_to_input"],
        "d_in": dictionary.d_in,
        "workbench": {"reads": dictionary.reads, "writes": dictionary.writes},
    }
    if name := dictionary.provenance.get("model_name"):
        content["workbench"]["model_name"] = str(name)
    with replacing(folder, DictionaryError, own=FILES) as new:
        new.mkdir()
        save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(content), encoding="utf-8")


def _activation(dictionary: Dictionary) -> str:
    """What sparsify calls the activation function."""
    word = dictionary.kind.split("_")[0]
    if word not in ("topk", "groupmax"):
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, and sparsify has TopK and GroupMax alone; save it in "
            "another format."
        )
    if dictionary.config()["normalize_activations"] != "none":
        raise DictionaryError(f"{dictionary.name} normalises activations first, which sparsify has no field for.")
    return word


def _check_fields(config: Config) -> None:
    """Refuse fields that decide something which has no kind here."""
    if config.get("signed"):
        raise DictionaryError(
            "its latents have values of either sign (signed), which today's sparsify does not compute any more, and no "
            "kind here does"
        )
    if config.get("activation", "topk") not in ("topk", "groupmax"):
        raise DictionaryError(
            f"its activation is {shown(config.get('activation'))}, and sparsify has topk and groupmax"
        )
    for name, value in config.items():
        empty = value is None or value is False or value in ("", "none", [], {})
        if name not in Config.__annotations__ and name not in HARMLESS and not empty:
            raise DictionaryError(
                f"its {CONFIG} has {name} = {shown(value)}, which is not known here and may decide what the dictionary "
                "computes; take it out if it does not"
            )


def _width(config: Config) -> int:
    """Number of latents, as the fields state it."""
    width = config.get("num_latents", 0) or config["d_in"] * config.get("expansion_factor", 0)
    if not width:
        raise DictionaryError(f"its {CONFIG} says neither num_latents nor expansion_factor")
    return width


def _built(config: Config, tensors: dict[str, Tensor], width: int, *, transcodes: bool) -> Dictionary:
    """The dictionary of the kind that the fields state.

    b_dec is subtracted from the input unless `transcode` stands in `cfg.json`. No transcoder and no kind with a skip
    path does that: the product with the encoder goes into b_enc there.
    """
    skip, transcode = config.get("skip_connection", False), config.get("transcode", False)
    word = config.get("activation", "topk") + ("_skip_transcoder" if skip else "_transcoder" if transcodes else "")
    own = {name: tensors[name] for name in ("W_dec", "b_dec", "W_skip") if name in tensors}
    own |= {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
    if (skip or transcodes) and not transcode:
        shift = [rows.float() @ tensors["b_dec"] for rows in tensors["encoder.weight"].split(ROWS)]
        own["b_enc"] = own["b_enc"] - torch.cat(shift)
        check_finite({"encoder.bias": own["b_enc"]})
    stated: dict[str, Any] = {"d_in": config["d_in"], "d_out": config["d_in"], "d_sae": width, "k": config["k"]}
    stated["apply_b_dec_to_input"] = not transcodes and not skip
    dictionary = Dictionary.kind_called(word).from_config(stated, own)
    hold_finite(dictionary, own)
    return dictionary


def _is_one(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in texts by their value."""
    return [(int(one), "") if one.isdigit() else (-1, one) for one in re.split(r"(\d+)", text)]
