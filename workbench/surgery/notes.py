"""`surgery.json`: the note in the folder of a child that states its hash and the steps that made it.

Format 3 holds the hashes of the folder's files beside the weights, and hashes of models that cover their settings and
tokenizer. Format 2 names operations by their functions. Format 1 used the names of `FORMER_NAMES`; a certificate and a
model's own record of its steps may still hold them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

from workbench.core.forms import read_json
from workbench.core.hashing import hash_of
from workbench.core.paths import check_links
from workbench.surgery.child_building import SurgeryError

NOTE = "surgery.json"
FORMAT = 3
FORMER_NAMES = {
    "remove layers": "remove_layers",
    "remove sublayers": "remove_sublayers",
    "remove heads": "remove_heads",
    "ablate direction": "ablate_direction",
    "see_ahead": "remove_causal_mask",
    "fewer_kv_heads": "merge_kv_heads",
    "skip": "drop_sublayers",
    "expert": "extract_expert",
    "cut_expert": "keep_neurons",
}
"""Names of operations in format 1, with those of today."""


class ModelName(TypedDict):
    """Name and hash of a model or of a text."""

    name: str
    hash: str


class Step(TypedDict):
    """One step; beside these keys it holds the settings of its operation."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    operation: str
    edit_hash: str
    parent: ModelName
    hash: str


class Note(TypedDict):
    """The content of `surgery.json`."""

    format: int
    name: str
    hash: str
    history: Annotated[list[Step], MinLen(1)]
    weights_hash: NotRequired[str]
    rounded_from: NotRequired[str]
    """The hash of the values that the weights were rounded from, where they are those of a rounded parent."""
    files: NotRequired[dict[str, str]]
    """SHA-256 of the files that decide beside the weights, by name."""
    sha256: NotRequired[str]
    """Of all other entries."""


def read_note(folder: Path) -> Note:
    """The note in a folder, in the present format.

    Raises:
        SurgeryError: the folder has no such note, or the note is damaged or of an unknown format.
    """
    check_links(folder, SurgeryError)
    if not (folder / NOTE).exists():
        raise SurgeryError(f"{folder} holds no model that was saved by surgery: it has no {NOTE}.")
    note = read_json(folder / NOTE, Note, SurgeryError, "a note of surgery")
    if note["format"] not in (1, 2, FORMAT):
        raise SurgeryError(f"{folder} is in format {note['format']}, and this version reads formats 1 to {FORMAT}.")
    if note["format"] == FORMAT and ("files" not in note or "weights_hash" not in note):
        raise SurgeryError(f"{folder / NOTE} lacks the hashes of the folder's files; copy the folder again.")
    if note["format"] == FORMAT and sealed(note) != note:
        raise SurgeryError(f"The entries of {folder / NOTE} are not those that were saved there; copy it again.")
    return note | {"history": with_current_names(note["history"])}  # type: ignore[return-value]


def sealed(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note with the hash of all its entries among them."""
    rest = {name: value for name, value in note.items() if name != "sha256"}
    return rest | {"sha256": hash_of(rest)}


def with_current_names(history: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Copies of steps, with each operation under its present name."""
    return [dict(step) | {"operation": FORMER_NAMES.get(step["operation"], step["operation"])} for step in history]


def edit_hash(step: Mapping[str, Any]) -> str:
    """SHA-256 of a step, in hex.

    An operation counts under its first name, so that the same step has the same hash in every format.

    Raises:
        SurgeryError: JSON can't hold the step.
    """
    first = {name: former for former, name in FORMER_NAMES.items()}
    counted = dict(step)
    if isinstance(step.get("operation"), str):
        counted["operation"] = first.get(step["operation"], step["operation"])
    try:
        return hashlib.sha256(json.dumps(counted, sort_keys=True, allow_nan=False).encode()).hexdigest()
    except (TypeError, ValueError) as error:
        raise SurgeryError(f"A step has to be plain data that JSON can hold ({error}).") from error
