"""A dictionary on disk: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens names them.

Other files in the folder (an index, a training state) are left alone. Each file is written under a temporary name and
renamed, and everything that is read is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import MinLen
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Positive, PositiveNumber
from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing
from workbench.core.forms import parse_json

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FORMAT = 1
"""Version of our own fields in `cfg.json`."""
SAELENS = "6.54.0"
"""The SAELens version whose format our folders have; without it SAELens takes a folder for one from before 6.0."""


class DictionaryError(WorkbenchError):
    """A dictionary that can't be built, found, read, written or used as asked."""


@with_config(ConfigDict(extra="allow"))
class Own(TypedDict):
    """Our own fields of `cfg.json`."""

    format: NotRequired[Any]
    kind: NotRequired[Annotated[str, MinLen(1)]]
    name: NotRequired[str]
    reads: NotRequired[str]
    writes: NotRequired[str]
    sha256: NotRequired[str]
    provenance: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]
    unit_in: NotRequired[PositiveNumber]
    unit_out: NotRequired[PositiveNumber]


@with_config(ConfigDict(extra="allow"))
class Metadata(TypedDict):
    """What SAELens says of a dictionary's place."""

    hook_name: NotRequired[str | None]
    hook_name_out: NotRequired[str | None]


@with_config(ConfigDict(extra="allow"))
class Config(TypedDict):
    """The fields of `cfg.json` that decide; it holds others too, and which ones depends on its version."""

    architecture: NotRequired[str]
    d_in: NotRequired[Positive]
    d_sae: NotRequired[Positive]
    d_out: NotRequired[Positive]
    apply_b_dec_to_input: NotRequired[bool]
    rescale_acts_by_decoder_norm: NotRequired[bool | None]
    metadata: NotRequired[Metadata | None]
    workbench: NotRequired[Own | None]


def write_folder(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a dictionary's two files, each whole or not at all.

    Raises:
        DictionaryError: the folder can't be written, or the configuration is not plain data.
    """
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DictionaryError(f"What goes into {CONFIG} must be plain data that JSON can hold: {error}.") from error
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path / CONFIG) as new_config, replacing(path / WEIGHTS) as new_weights:
            save_file(contiguous, new_weights, metadata={"format": "pt"})
            new_config.write_text(text)
    except (OSError, SafetensorError) as error:
        raise DictionaryError(f"The dictionary can't be written to {path}: {error}.") from error


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a dictionary's two files: configuration and tensors.

    Raises:
        DictionaryError: a file is damaged or of another form; the message does not name the folder.
    """
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    config = parse_json(text, Config, DictionaryError, f"its {CONFIG} is damaged")
    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DictionaryError(
            f"its {WEIGHTS} is damaged or cut short ({error}); copy or save the dictionary again"
        ) from error
    check_finite(tensors)
    return dict(config), tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `DictionaryError` where a weight is no finite number; a threshold may be infinite: its latent is off."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DictionaryError(f"its {name} holds {tensor.dtype}, not floating-point numbers")
        threshold = "threshold" in name
        wrong = tensor.isnan() | (tensor == -torch.inf) if threshold else ~tensor.isfinite()
        if bool(wrong.any()):
            raise DictionaryError(
                f"its {name} holds values that are not finite, so its codes would be none; make it anew"
            )


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise `DictionaryError` unless tensors have the names, shapes and kinds of numbers that are expected."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise DictionaryError(f"its weights {'lack' if name in expected else 'have an unknown'} {name}")
    for name, tensor in expected.items():
        there, shape = tensors[name], tuple(tensor.shape)
        if tuple(there.shape) != shape:
            raise DictionaryError(f"{name} has the shape {tuple(there.shape)}, and cfg.json says {shape}")
        if there.is_floating_point() != tensor.is_floating_point():
            raise DictionaryError(f"{name} holds {there.dtype}, which is no type for it")
