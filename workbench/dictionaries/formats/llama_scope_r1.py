"""Llama Scope R1: folders with `config.json` and `sae_weights.safetensors`, JumpReLU autoencoders of Llama 3.1.

OpenMOSS, https://huggingface.co/fnlp/Llama-Scope-R1-Distill. They were trained on activations of a mean norm of √d_in,
and the files do not say by which factor; SAELens's list of releases does (SAELens 6.54,
`loading/pretrained_sae_loaders.py`, `llama_scope_r1_distill`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.core.checks import Positive
from workbench.core.forms import parse_json
from workbench.dictionaries.folder import WEIGHTS, DictionaryError
from workbench.dictionaries.folder import CONFIG as SAELENS_CONFIG
from workbench.dictionaries.foreign import SHAPES, built, mapped_safetensors, taken
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.saelens_folding import checked_factor

TITLE = "Llama Scope R1"
CONFIG = "config.json"
FILES = (CONFIG, WEIGHTS)
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
NAMES |= {"log_jumprelu_threshold": "threshold"}


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `config.json` that decide."""

    d_model: Positive
    expansion_factor: Positive
    hook_point_in: str


def matches(path: Path) -> bool:
    """Whether the folder has the two files, and not SAELens's configuration."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file() and not (path / SAELENS_CONFIG).exists()


def read(path: Path, stated: Mapping[str, Any] | None = None) -> Dictionary:
    """The dictionary of activations as they are.

    Args:
        path: the folder.
        stated: settings of a list of releases, with the `norm_scaling_factor`.

    Raises:
        DictionaryError: a file is damaged, or the factor is not known.
    """
    config = parse_json((path / CONFIG).read_bytes(), Config, DictionaryError, f"its {CONFIG} is damaged")
    if "norm_scaling_factor" not in (stated or {}):
        raise DictionaryError(
            "its files do not say by which factor its inputs are scaled; open it by the release and id of SAELens's "
            "list, such as llama_scope_r1_distill/l0r_800m_slimpajama"
        )
    factor = checked_factor((stated or {})["norm_scaling_factor"])
    tensors = taken(mapped_safetensors(path / WEIGHTS, f"its {WEIGHTS}"), NAMES, SHAPES)
    tensors["threshold"] = tensors["threshold"].exp()
    tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"].T * factor, tensors["W_dec"].T / factor
    tensors["b_dec"] = tensors["b_dec"] / factor
    if tensors["W_enc"].shape != (config["d_model"], config["d_model"] * config["expansion_factor"]):
        raise DictionaryError(f"its weights are of another size than its {CONFIG} says")
    return built("jumprelu", tensors, reads=config["hook_point_in"])
