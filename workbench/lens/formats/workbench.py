"""Our own folders: `lens.safetensors` with the weights and `lens.json` with what they belong to, sealed by one hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Integer
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.hashing import fingerprint, hash_of, not_finite
from workbench.core.steady import read_steadily
from workbench.core.type_words import reason_of
from workbench.lens.errors import LensError
from workbench.lens.transports import Lens, LensRecord
from workbench.model.language_model import LanguageModel

TITLE = "Workbench"
NOTE, WEIGHTS = "lens.json", "lens.safetensors"


class SavedLens(TypedDict):
    """`lens.json`."""

    format: Literal[1]
    kind: str
    model_name: str
    model_hash: str
    layers: list[Integer]
    fitted_on: dict[str, Any]
    sha256: str


def matches(path: Path) -> bool:
    """Whether a folder has the two files."""
    return (path / NOTE).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Lens:
    """The lens in a folder.

    Raises:
        LensError: a file is damaged, of another form or version, or was altered after it was saved.
    """
    return read_steadily(lambda: _read(path), (path, path / NOTE, path / WEIGHTS), LensError)


def read_note(path: Path) -> SavedLens:
    """What `lens.json` of a folder states; raises `LensError` where it has another form."""
    return read_json(path / NOTE, SavedLens, LensError, "the note of a lens")


def check(lens: Lens, model: LanguageModel) -> None:
    """Raise `LensError` unless the lens was fitted to this very model."""
    lens.check_model(model)


def write(lens: Lens, folder: Path) -> None:
    """Write the two files into a folder that changes places whole; a lens that is there is replaced.

    Raises:
        LensError: the folder can't be written, or holds something else.
    """
    with replacing(folder, LensError, note=NOTE) as temporary:
        temporary.mkdir()
        write_files(lens, temporary)


def write_files(lens: Lens, folder: Path) -> None:
    """Write the two files into a folder that is there."""
    about = lens.about
    if about is None:
        raise LensError(f"A {lens.kind} lens has no weights to save.")
    tensors = {name: one.detach().cpu().contiguous() for name, one in lens.tensors().items()}
    note: dict[str, Any] = {"format": 1, "kind": lens.kind, "model_name": about.model_name}
    note |= {"model_hash": about.model_hash, "layers": [*about.layers], "fitted_on": dict(about.fitted_on)}
    try:
        plain = json.loads(json.dumps(note, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LensError(f"What a lens was fitted on must be plain data that JSON can hold: {error}.") from error
    save_file(tensors, folder / WEIGHTS)
    text = json.dumps(plain | {"sha256": _seal(plain, tensors)}, indent=2)
    (folder / NOTE).write_text(text, encoding="utf-8")


def _seal(note: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over all that a saved lens states and holds."""
    return hash_of(note | {"tensors": fingerprint(tensors)})


def _read(path: Path) -> Lens:
    note = read_note(path)
    try:
        with safe_open(path / WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LensError(f"{path / WEIGHTS} is damaged or cut short ({reason_of(error)}); copy it again.") from error
    plain: dict[str, Any] = {**note}
    if plain.pop("sha256") != _seal(plain, tensors):
        raise LensError(f"{path} was altered after it was saved; copy {NOTE} and {WEIGHTS} again.")
    if wrong := not_finite(tensors):
        raise LensError(f"{path} can't be used: its {wrong} holds values that are not finite; fit it anew.")
    about = LensRecord(note["model_name"], note["model_hash"], tuple(note["layers"]), note["fitted_on"])
    return Lens.kind_called(note["kind"]).from_tensors(tensors, about)
