"""A dictionary on disk: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens names them.

A folder changes places whole. Where it holds other files too (an index, a training state), those are left alone, and
the two files are renamed, the weights first. The weights hold their configuration in their metadata, and the SHA-256 of
the `cfg.json` that they found there, so that a reader knows the `cfg.json` that a killed process did not replace any
more. Everything that is read is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
OWN, REPLACES = "workbench", "replaces"
"""Key of the weights' metadata, which is JSON, and the key in it of the SHA-256 of the `cfg.json` before this one."""
ATTEMPTS = 20
"""How often a folder is read at most while another process replaces it."""
FORMAT = 1
"""Version of our own fields in `cfg.json`."""
SAELENS = "6.54.0"
"""The SAELens version whose format our folders have; without it SAELens takes a folder for one from before 6.0."""


class DictionaryError(WorkbenchError):
    """A dictionary that can't be built, found, read, written or used as asked."""


def write_folder(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a dictionary's two files, both or none of them.

    Raises:
        DictionaryError: the folder can't be written or holds a `cfg.json` of something else, or the configuration is
            not plain data.
    """
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DictionaryError(f"What goes into {CONFIG} must be plain data that JSON can hold: {error}.") from error
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if not _holds_more(path):
        with replacing(path, DictionaryError, own=(CONFIG, WEIGHTS)) as folder:
            folder.mkdir()
            save_file(contiguous, folder / WEIGHTS, metadata=_metadata(text))
            (folder / CONFIG).write_text(text, encoding="utf-8")
        return
    replaced = ""
    if (path / CONFIG).exists():
        if not (path / WEIGHTS).exists():
            raise DictionaryError(
                f"{path / CONFIG} is not of a dictionary: there is no {WEIGHTS}; choose another folder."
            )
        replaced = _sha256((path / CONFIG).read_bytes())
    # the weights, which are entered last, take their place first
    with (
        replacing(path / CONFIG, DictionaryError, owned=True) as new_config,
        replacing(path / WEIGHTS, DictionaryError, owned=True) as new_weights,
    ):
        save_file(contiguous, new_weights, metadata=_metadata(text, replaced))
        new_config.write_text(text, encoding="utf-8")


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a dictionary's two files: configuration and tensors.

    Raises:
        DictionaryError: a file is damaged or of another form; the message does not name the folder.
    """
    for _ in range(ATTEMPTS):
        before = _state(path)
        content = _read_files(path)
        if _state(path) == before:
            break  # no other process replaced a file between the two
    text, tensors, metadata = content
    try:
        own = json.loads(metadata.get(OWN, "{}"))
        config = json.loads(own[CONFIG] if own.get(REPLACES) == _sha256(text) else text)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    if not isinstance(config, dict):
        raise DictionaryError(f"its {CONFIG} does not hold a configuration; save the dictionary again")
    return config, tensors


def _holds_more(path: Path) -> bool:
    """Whether a folder is there that holds other files than a dictionary's two."""
    return path.is_dir() and any(file.name not in (CONFIG, WEIGHTS) for file in path.iterdir())


def _read_files(path: Path) -> tuple[bytes, dict[str, Tensor], dict[str, str]]:
    """The text of the configuration, the tensors and their metadata."""
    try:
        text = (path / CONFIG).read_bytes()
    except OSError as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    try:
        with safe_open(path / WEIGHTS, "pt") as file:
            return text, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DictionaryError(
            f"its {WEIGHTS} is damaged or cut short ({error}); copy or save the dictionary again"
        ) from error


def _state(path: Path) -> list[tuple[int, int, int]]:
    """What changes when one of the files is replaced."""
    try:
        states = [(path / name).stat() for name in (CONFIG, WEIGHTS)]
    except OSError:
        return []
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in states]


def _metadata(text: str, replaced: str = "") -> dict[str, str]:
    """Of the weights, under one key: the order of several would differ from file to file."""
    return {OWN: json.dumps({CONFIG: text, REPLACES: replaced})}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
