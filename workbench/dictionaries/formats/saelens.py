"""Folders with `cfg.json` and `sae_weights.safetensors`: those of SAELens (6.54, and before 6.0), and our own.

Our folders are SAELens's with more fields under `workbench`. Folders of both are brought into the one form that
`Dictionary.from_config` reads. Field names: https://github.com/decoderesearch/SAELens, `sae_lens/saes/`,
`sae_lens/loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.hashing import fingerprint
from workbench.dictionaries.folder import CONFIG, FORMAT, WEIGHTS, DictionaryError, read_folder
from workbench.dictionaries.protocol import Dictionary


def matches(folder: Path) -> bool:
    """Whether the folder has the two files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Dictionary:
    """The dictionary in the folder, with its hook points, name and provenance.

    Raises:
        DictionaryError: a file is damaged, of another version, or not what `cfg.json` says; or the dictionary depends
            on something that does not fit a dictionary here. The message does not name the folder.
        KeyError: `cfg.json` lacks a field.
    """
    config, tensors = read_folder(folder)
    own = config.get("workbench") or {}
    if own.get("format", FORMAT) != FORMAT:
        raise DictionaryError(
            f"it is in format {own['format']} and this version reads format {FORMAT}; "
            "open it with the version that wrote it, or train it anew"
        )
    if "sha256" in own and own["sha256"] != fingerprint(tensors):
        raise DictionaryError("its weights are not those that were saved with its cfg.json; copy both files again")
    config, tensors = understood(config, tensors)
    kind = Dictionary.kind_called(own.get("kind") or config["architecture"])
    dictionary = kind.from_config(config, tensors)
    metadata = config["metadata"]
    dictionary.reads = own.get("reads") or metadata.get("hook_name") or ""
    dictionary.writes = own.get("writes") or metadata.get("hook_name_out") or dictionary.reads
    dictionary.name = own.get("name") or ""
    dictionary.provenance = own.get("provenance") or {}
    return dictionary


def understood(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors in today's form.

    Decoder norms that the activation function would have to multiply with are folded into the weights, and a learned
    BatchTopK threshold becomes one threshold per latent.

    Raises:
        DictionaryError: the dictionary depends on something that does not fit a dictionary here.
    """
    config, tensors = _renamed(config), dict(tensors)
    rule = config.get("normalize_activations") or "none"
    if rule != "none":
        raise DictionaryError(
            f"it was made for inputs that are normalised first ({rule}), which a dictionary here has in its weights; "
            "fold the normalisation into the weights with SAELens and save it again"
        )
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling == 1).all()):
        raise DictionaryError("it has a fine-tuned scaling_factor; fold that into W_dec and save it again")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "topk_threshold" in tensors and "b_enc" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").to(tensors["b_enc"]).expand_as(tensors["b_enc"]).clone()
    if config.get("rescale_acts_by_decoder_norm") and {"W_enc", "b_enc", "W_dec"} <= tensors.keys():
        norms = tensors["W_dec"].norm(dim=-1)  # [width]
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensors[name] = tensor.float()
    return config, tensors


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the format before 6.0 under their present names."""
    config = dict(config)
    metadata = dict(config.get("metadata") or {})
    for old in ("hook_point", "hook_name"):
        if old in config:
            metadata.setdefault("hook_name", config[old])
    config["metadata"] = metadata
    if "architecture" in config:
        return config
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if function == "topk":
        config["k"] = (config.get("activation_fn_kwargs") or {}).get("k")
    config["architecture"] = function
    return config
