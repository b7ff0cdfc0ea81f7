"""Llama Scope: folders with `hyperparams.json` and `checkpoints/final.safetensors`, JumpReLU autoencoders of Llama 3.1.

He et al., "Llama Scope" (2024), arXiv 2410.20526. They were trained on activations of a mean norm of √d_in, and one
threshold holds for all latents. As in SAELens 6.54 (`loading/pretrained_sae_loaders.py`, `llama_scope`) the factor
√d_in / dataset_average_activation_norm goes into the weights and multiplies the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.core.checks import Number, PositiveNumber
from workbench.core.forms import parse_json
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import SHAPES, built, mapped_safetensors, taken
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.saelens_folding import checked_factor

TITLE = "Llama Scope"
CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
FILES = (CONFIG, WEIGHTS)
MODEL = "meta-llama/Llama-3.1-8B"
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
PLAIN = {"act_fn": ("jumprelu",), "norm_activation": ("dataset-wise",), "use_glu_encoder": (False,)}
PLAIN |= {"apply_decoder_bias_to_pre_encoder": (False,), "use_decoder_bias": (True,)}
"""Fields that decide what the dictionary computes, and the values that are read."""


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `hyperparams.json` that decide."""

    jump_relu_threshold: Number
    dataset_average_activation_norm: dict[str, PositiveNumber]
    hook_point_in: str
    hook_point_out: NotRequired[str | None]


def matches(path: Path) -> bool:
    """Whether the folder has the two files."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, stated: Mapping[str, Any] | None = None) -> Dictionary:
    """The dictionary of activations as they are.

    Args:
        path: the folder.
        stated: settings of a list of releases: a `norm_scaling_factor` stands for the one of `hyperparams.json`.

    Raises:
        DictionaryError: a file is damaged, or the settings are of a dictionary that computes something else.
    """
    complaint = f"its {CONFIG} is damaged"
    config = parse_json((path / CONFIG).read_bytes(), Config, DictionaryError, complaint)
    for name, values in PLAIN.items():
        value = config.get(name)
        if value is not None and value not in values:
            raise DictionaryError(f"its {CONFIG} says {name} = {shown(value)}, which is not Llama Scope's {values[0]}")
    written = config.get("hook_point_out")
    if written not in (None, config["hook_point_in"]):
        raise DictionaryError(f"it reads {config['hook_point_in']} and writes {written}, which is a transcoder's")
    norm = config["dataset_average_activation_norm"].get("in")
    if norm is None:
        raise DictionaryError(f"its {CONFIG} does not say the dataset_average_activation_norm of what it reads")
    tensors = taken(mapped_safetensors(path / WEIGHTS, f"its {WEIGHTS}"), NAMES, SHAPES)
    factor = tensors["b_dec"].numel() ** 0.5 / norm
    tensors["threshold"] = tensors["b_enc"].new_full(tensors["b_enc"].shape, config["jump_relu_threshold"] * factor)
    factor = checked_factor((stated or {}).get("norm_scaling_factor", factor))
    tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"].T * factor, tensors["W_dec"].T / factor
    tensors["b_dec"] = tensors["b_dec"] / factor
    return built("jumprelu", tensors, reads=config["hook_point_in"], model=MODEL)
