"""Folders with `cfg.json` and `sae_weights.safetensors`: those of SAELens (6.54, and before 6.0), and our own.

Our folders are SAELens's with more fields under `workbench`. Folders of both are brought into the one form that
`Dictionary.from_config` reads. Field names: https://github.com/decoderesearch/SAELens, `sae_lens/saes/`,
`sae_lens/loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.type_words import shown
from workbench.dictionaries.folder import (
    CONFIG,
    SAELENS,
    WEIGHTS,
    DictionaryError,
    check_settings,
    read_folder,
    write_folder,
)
from workbench.dictionaries.normalising import NONE
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.remembered import hold_examined, hold_finite
from workbench.dictionaries.saelens_fields import EXPECTED, WHITENED, declared, refuse_unknown
from workbench.dictionaries.saelens_folding import (
    SCALER,
    WHITENING,
    folded,
    rescale,
    threshold_of_training,
    unfolded_gate,
)

TITLE = "SAELens"
FILES = (CONFIG, WEIGHTS, SCALER, WHITENING)
OPENED = (
    *("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder"),
    "jumprelu_skip_transcoder",
)
"""Architectures of our kinds that SAELens opens."""
APART = ("dtype", "device", "metadata", "workbench", "reshape_activations")
"""Fields of our own folders that don't follow from the dictionary's weights and settings alone."""


def matches(folder: Path) -> bool:
    """Whether the folder has the two files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, stated: Mapping[str, Any] | None = None) -> Dictionary:
    """The dictionary in the folder, with its hook points, name and provenance.

    Args:
        folder: with the two files.
        stated: settings of a list of releases, which stand for those of a foreign `cfg.json`, and the
            `norm_scaling_factor` that it lacks.

    Raises:
        DictionaryError: a file is damaged, of another version, or not what `cfg.json` says; or the dictionary depends
            on something that does not fit a dictionary here. The message does not name the folder.
        KeyError: `cfg.json` lacks a field.
    """
    stored = read_folder(folder)
    content, own = stored.config, stored.config.get("workbench") or {}
    stated = dict(stated or {})
    factor = stated.pop("norm_scaling_factor", None)
    if stated and not is_ours(content):
        content = content | stated
    config, tensors = understood(content, stored.tensors, folder, factor)
    kind = Dictionary.kind_called(own.get("kind") or config["architecture"])
    if not is_ours(content):
        refuse_unknown(content, known=inspect.signature(kind).parameters)
    dictionary = kind.from_config(config, tensors)
    if stored.fingerprint:
        hold_examined(dictionary, dictionary.tensors(), stored.tensors, stored.fingerprint)
    else:
        hold_finite(dictionary, stored.tensors)
    if is_ours(content):
        _check_stated(content, dictionary)
    check_settings(content)
    metadata = config["metadata"]
    dictionary.reads = own.get("reads") or metadata.get("hook_name") or ""
    unsaid = "" if kind.transcodes or kind.across else dictionary.reads  # where a transcoder writes its file says
    dictionary.writes = own.get("writes") or metadata.get("hook_name_out") or unsaid
    dictionary.name = own.get("name") or ""
    dictionary.provenance = own.get("provenance") or {}
    if not is_ours(content) and (model := metadata.get("model_name") or content.get("model_name")):
        dictionary.provenance["model_name"] = str(model)
    return dictionary


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary for SAELens: our own folder, where SAELens knows the architecture.

    Raises:
        DictionaryError: it does not, or the folder can't be written.
    """
    word = dictionary.config()["architecture"]
    if word not in OPENED:
        raise DictionaryError(
            f"{dictionary.name} is of the kind {dictionary.kind}, which SAELens {SAELENS} does not open; leave format "
            "out to save it for Workbench."
        )
    if word == "gated":
        write_folder(folder, *_gated(dictionary))
    else:
        dictionary.write(folder)


def _gated(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a gated dictionary as SAELens has them."""
    config = {name: value for name, value in dictionary.config().items() if name != "workbench"}
    return config, unfolded_gate(dictionary.tensors())


def is_ours(config: dict[str, Any]) -> bool:
    """Whether a `cfg.json` was written here; SAELens's has nothing under `workbench`."""
    return bool((config.get("workbench") or {}).get("kind"))


def understood(
    config: dict[str, Any], tensors: dict[str, Tensor], folder: Path | None = None, factor: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors in today's form; see `saelens_folding.folded`.

    Args:
        config: the content of `cfg.json`.
        tensors: the weights.
        folder: where they lie, with the files of a training.
        factor: of the inputs, where a list of releases states it.

    Raises:
        DictionaryError: the dictionary depends on something that does not fit a dictionary here.
    """
    ours = is_ours(config)
    config, tensors = declared(config, ours=ours), dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensors[name] = tensor.float()
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    threshold_of_training(tensors)
    if ours:
        rescale(config, tensors)
        return config, tensors
    tensors = folded(config, tensors, folder, factor)
    if config.get("normalize_activations") in (EXPECTED, WHITENED):
        config["normalize_activations"] = NONE
    return config, tensors


def _check_stated(content: dict[str, Any], dictionary: Dictionary) -> None:
    """Refuse a folder of ours in which a setting is missing, or a field says something else than the settings.

    The constructor's default would stand for a missing setting.
    """
    expected = dictionary.config()
    refuse_unknown(content, known=expected)
    own, settings = content["workbench"], expected.get("workbench", {}).get("settings", {})
    for name, value in settings.items():
        if name not in own.get("settings", {}):
            raise DictionaryError(f"its cfg.json does not say the setting {name}; save the dictionary again")
        if own["settings"][name] != value:
            raise DictionaryError(
                f"its setting {name} is {shown(own['settings'][name])}, which is read as {shown(value)}"
            )
    for name in expected.keys() & content.keys() - {*APART}:
        if content[name] != expected[name]:
            raise DictionaryError(
                f"its cfg.json contradicts itself: {name} is {shown(content[name])}, and for what stands under "
                f"workbench it is {shown(expected[name])}; save the dictionary again"
            )
