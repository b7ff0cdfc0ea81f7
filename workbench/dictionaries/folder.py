"""A dictionary on disk: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens names them.

A folder changes places whole. Where it holds other files too (an index, a training state), or the process runs in it,
the rest is left alone, and the two files are renamed by one process at a time, the weights first. The weights hold
their configuration in their metadata, and the SHA-256 of the `cfg.json` that they found there, so that a reader knows
the `cfg.json` that a killed process did not replace any more. `cfg.json` holds the SHA-256 of the weights and of its
own settings; folders of older versions lack the latter. Everything that is read is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import MinLen
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Positive, PositiveNumber
from workbench.core.errors import WorkbenchError
from workbench.core.failures import explained
from workbench.core.files import replacing
from workbench.core.forms import parse_json
from workbench.core.hashing import hash_of, not_finite
from workbench.core.locks import alone
from workbench.core.replacement import form_of
from workbench.core.steady import read_steadily
from workbench.core.tensor_files import file_fingerprint, look_at_file, tensor_places

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
OWN, REPLACES = "workbench", "replaces"
"""Key of the weights' metadata, which is JSON, and the key in it of the SHA-256 of the `cfg.json` before this one."""
MARKS = frozenset({"architecture", "d_in", OWN})
"""Keys one of which every `cfg.json` of a dictionary has."""
DAMAGED = ("text", "other bytes")
"""What the form of a JSON file is called that can't be read as JSON."""
SEAL = "settings_sha256"
"""Our own field with the hash of all others but for the provenance."""
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
    settings_sha256: NotRequired[str]
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
    """Write a dictionary's two files, both or none of them.

    Raises:
        DictionaryError: the folder can't be written, or holds one of the two files alone or of something else, or the
            configuration is not plain data.
    """
    try:
        text = json.dumps(_sealed(config), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DictionaryError(f"What goes into {CONFIG} must be plain data that JSON can hold: {error}.") from error
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with explained(path, DictionaryError):
        _check_replaceable(path)
        stays = _stays(path)
    if not stays:
        with replacing(path, DictionaryError, own=(CONFIG, WEIGHTS)) as folder:
            folder.mkdir()
            save_file(contiguous, folder / WEIGHTS, metadata=_metadata(text))
            (folder / CONFIG).write_text(text, encoding="utf-8")
        return
    with alone(path, DictionaryError):
        replaced = _sha256((path / CONFIG).read_bytes()) if (path / CONFIG).exists() else ""
        # the weights, which are entered last, take their place first
        with (
            replacing(path / CONFIG, DictionaryError, owned=True) as new_config,
            replacing(path / WEIGHTS, DictionaryError, owned=True) as new_weights,
        ):
            save_file(contiguous, new_weights, metadata=_metadata(text, replaced))
            new_config.write_text(text, encoding="utf-8")


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise `DictionaryError` where a `cfg.json` has a seal and is another one than was saved with it."""
    sealed = (config.get(OWN) or {}).get(SEAL)
    if sealed is not None and sealed != _settings_hash(config):
        raise DictionaryError(
            f"its {CONFIG} was altered after it was saved; copy it again, or delete {SEAL} in it if the change is meant"
        )


def _sealed(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(config, allow_nan=False))  # as it will be read
    return {**config, OWN: config.get(OWN, {}) | {SEAL: _settings_hash(plain)}}


def _settings_hash(config: Mapping[str, Any]) -> str:
    own = {name: value for name, value in config.get(OWN, {}).items() if name not in (SEAL, "provenance")}
    return hash_of({**config, OWN: own})


@dataclass(frozen=True)
class Stored:
    """The content of a dictionary's folder."""

    config: dict[str, Any]
    """That of `cfg.json`."""
    tensors: dict[str, Tensor]
    """Mapped from the file: what is not used takes no memory."""
    fingerprint: str
    """Of the tensors, as `core.hashing.fingerprint`; empty where the folder states none to compare with, so that no
    time goes into it: values are looked at all the same."""


def read_folder(path: Path) -> Stored:
    """Read a dictionary's two files; every weight is looked at once, a piece of the file at a time.

    Raises:
        DictionaryError: a file is damaged or of another form or version, the weights are not those of the
            configuration, or a weight is no finite number; the message does not name the folder.
    """
    return read_steadily(lambda: _read_files(path), (path, path / CONFIG, path / WEIGHTS), DictionaryError)


def _stays(path: Path) -> bool:
    """Whether a folder is there that can't change places: it holds other files too, or the process runs in it."""
    if not path.is_dir():
        return False
    more = any(file.name not in (CONFIG, WEIGHTS) for file in path.iterdir())
    return more or Path.cwd().is_relative_to(path.resolve())


def _check_replaceable(path: Path) -> None:
    """Raise `DictionaryError` where one of the two files is there and a dictionary did not leave it.

    A killed process leaves its weights without a `cfg.json`; their metadata tell whose they are. An empty file is none.
    """
    config, weights = path / CONFIG, path / WEIGHTS
    form = form_of(config) if config.is_file() else None
    if form is None:
        if weights.is_file() and weights.stat().st_size and not _are_ours(weights):
            raise DictionaryError(f"{weights} is not of a dictionary: there is no {CONFIG}; choose another folder.")
        return
    if not weights.exists():
        raise DictionaryError(f"{config} is not of a dictionary: there is no {WEIGHTS}; choose another folder.")
    damaged = form.words in DAMAGED and _are_ours(weights)
    if not damaged and not form.parts & MARKS:
        raise DictionaryError(
            f"{config} is not of a dictionary: it has none of {', '.join(sorted(MARKS))}; choose another folder."
        )


def _are_ours(weights: Path) -> bool:
    """Whether the metadata of weights say that this module wrote them."""
    try:
        with safe_open(weights, "pt") as file:
            return OWN in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return False


def _read_files(path: Path) -> Stored:
    """The files as they are now, checked."""
    try:
        text = (path / CONFIG).read_bytes()
    except OSError as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    try:
        with safe_open(path / WEIGHTS, "pt") as file:  # its tensors are mapped
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(error) from error
    config = _config(text, metadata)
    own: Mapping[str, Any] = config.get(OWN) or {}
    _check_types(tensors)
    weights, fingerprint = path / WEIGHTS, ""
    try:
        if own:
            fingerprint = file_fingerprint(weights, tensors, DictionaryError, look)
        else:
            types = {name: tensor.dtype for name, tensor in tensors.items()}
            look_at_file(weights, tensor_places(weights, DictionaryError), types, DictionaryError, look)
    except OSError as error:
        raise _damaged(error) from error
    if own.get("sha256", fingerprint) != fingerprint:
        raise DictionaryError("its weights are not those that were saved with its cfg.json; copy both files again")
    return Stored(config, tensors, fingerprint)


def _damaged(error: Exception) -> DictionaryError:
    return DictionaryError(f"its {WEIGHTS} is damaged or cut short ({error}); copy or save the dictionary again")


def _config(text: bytes, metadata: dict[str, str]) -> dict[str, Any]:
    """The configuration that belongs to weights with this metadata.

    Raises:
        DictionaryError: it has another form or version.
    """
    try:
        own = parse_json(metadata.get(OWN, "{}"), dict[str, str], DictionaryError, f"its {WEIGHTS} is damaged")
        chosen = own.get(CONFIG, "") if own.get(REPLACES) == _sha256(text) else text.decode()
    except UnicodeDecodeError as error:
        raise DictionaryError(f"its {CONFIG} is damaged ({error}); save the dictionary again") from error
    config: dict[str, Any] = dict(parse_json(chosen, Config, DictionaryError, f"its {CONFIG} is damaged"))
    version = (config.get(OWN) or {}).get("format", FORMAT)
    if version != FORMAT:
        raise DictionaryError(
            f"it is in format {version} and this version reads format {FORMAT}; "
            "open it with the version that wrote it, or train it anew"
        )
    return config


def _metadata(text: str, replaced: str = "") -> dict[str, str]:
    """Of the weights, under one key: the order of several would differ from file to file."""
    return {OWN: json.dumps({CONFIG: text, REPLACES: replaced})}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def look(name: str, piece: Tensor) -> None:
    """Raise `DictionaryError` where a piece of a weight holds what is no finite number; see `check_finite`."""
    check_finite({name: piece})


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `DictionaryError` where a weight is no finite number; a threshold may be infinite: its latent is off."""
    _check_types(tensors)
    thresholds = [name for name in tensors if "threshold" in name]
    wrong = not_finite(tensors, infinite=thresholds)
    wrong = wrong or next((name for name in thresholds if bool((tensors[name] == -torch.inf).any())), "")
    if wrong:
        raise DictionaryError(f"its {wrong} holds values that are not finite, so its codes would be none; make it anew")


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    """Raise `DictionaryError` where a tensor holds no floating-point numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DictionaryError(f"its {name} holds {tensor.dtype}, not floating-point numbers")


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise `DictionaryError` unless tensors have the names, shapes and kinds of numbers that are expected."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise DictionaryError(f"its weights {'lack' if name in expected else 'have an unknown'} {name}")
    for name, tensor in expected.items():
        there, shape = tensors[name], tuple(tensor.shape)
        if tuple(there.shape) != shape:
            raise DictionaryError(f"{name} has the shape {tuple(there.shape)}, and by its settings it is {shape}")
        if there.is_floating_point() != tensor.is_floating_point():
            raise DictionaryError(f"{name} holds {there.dtype}, which is no type for it")
