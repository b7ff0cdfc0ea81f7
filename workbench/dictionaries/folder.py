"""A dictionary on disk: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens names them.

Other files in the folder (an index, a training state) are left alone. Each file is written under a temporary name and
renamed, and everything that is read is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FORMAT = 1
"""Version of our own fields in `cfg.json`."""
SAELENS = "6.54.0"
"""The SAELens version whose format our folders have; without it SAELens takes a folder for one from before 6.0."""


class DictionaryError(WorkbenchError):
    """A dictionary that can't be built, found, read, written or used as asked."""


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
        config = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    if not isinstance(config, dict):
        raise DictionaryError(f"its {CONFIG} does not hold a configuration; save the dictionary again")
    try:
        return config, load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise DictionaryError(
            f"its {WEIGHTS} is damaged or cut short ({error}); copy or save the dictionary again"
        ) from error
