"""The files of an index, and their checks.

    index/
      people.sqlite    labels, notes and stars; building never changes it
      labels.parquet   labels that rules and models found; building never changes it
      data/            everything computed; replaced as a whole
      building/        the files of an unfinished build

`data/index.json`, the note, records the model, corpus, dictionary and settings, and lists every other file with its
size and checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Positive
from workbench.core.errors import WorkbenchError
from workbench.core.files import is_empty, replacing
from workbench.core.forms import as_form, read_json
from workbench.core.hashing import hash_of
from workbench.core.paths import check_links, is_plain_name
from workbench.core.type_words import shown

FORMAT, EXPORTED = 1, 2
"""Version of the files: of an index of a corpus, and of one that was made from an export."""
DATA, BUILDING, ANNOTATIONS, NOTE = "data", "building", "people.sqlite", "index.json"
PATTERNS = ("*.bin", "*.parquet", "*.sqlite")
"""Names of the files of `data`, besides its note; older indexes have a file `words.sqlite`."""
PROGRESS = "progress.json"
"""The note of an unfinished build."""
WHOLE = 1 << 25
"""Files up to this size (32 MiB) are checked byte for byte; larger ones by as many bytes in evenly spaced pieces."""
PIECE = 1 << 16


class FeatureIndexError(WorkbenchError):
    """A feature index that can't be built, found, read or searched."""


@with_config(ConfigDict(extra="allow"))
class DictionaryNote(TypedDict):
    """The dictionary of an index; the note holds its kind and provenance too."""

    name: str
    reads: str
    writes: str
    n_features: Natural
    hash: str
    former_hash: NotRequired[str]


@with_config(ConfigDict(extra="allow"))
class HarvestNote(TypedDict):
    """The harvest of an index; the note holds its settings too."""

    model: str
    model_hash: str
    former_hash: NotRequired[str]


class FileNote(TypedDict):
    """Size and checksum of a file."""

    bytes: Natural
    sha256: str


@with_config(ConfigDict(extra="allow"))
class ExportNote(TypedDict):
    """The export that an index was made from; the note holds its name and hook point too."""

    source: str
    model: str
    absent: list[str]


@with_config(ConfigDict(extra="allow"))
class IndexNote(TypedDict):
    """The note of an index; it holds corpus, versions and command too."""

    format: int
    dictionary: DictionaryNote
    harvest: HarvestNote
    n_tokens: Natural
    keep: Positive | None
    signed: bool
    files: dict[str, FileNote]
    export: NotRequired[ExportNote]


def seal_of(note: Mapping[str, Any]) -> str:
    """SHA-256 of what the note of an export's index says; no dictionary is there to compare it with."""
    return hash_of({name: note.get(name) for name in ("dictionary", "harvest", "export", "keep", "signed", "n_tokens")})


def checksum(file: Path) -> str:
    """SHA-256 in hex: of all bytes, or of a large file's evenly spaced pieces and its size."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as opened:
        if size <= WHOLE:
            digest.update(opened.read())
        else:
            for start in np.linspace(0, size - PIECE, WHOLE // PIECE).astype(np.int64).tolist():
                opened.seek(start)
                digest.update(opened.read(PIECE))
    return digest.hexdigest()


def write_note(folder: Path, note: Mapping[str, Any]) -> None:
    """Write `index.json` beside the finished files of `folder`, after they have reached the disk."""
    files = {}
    for file in sorted(folder.iterdir()):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        files[file.name] = {"bytes": file.stat().st_size, "sha256": checksum(file)}
    (folder / NOTE).write_text(json.dumps({"format": FORMAT, **note, "files": files}, indent=2))


def read_note(folder: Path) -> IndexNote:
    """The note of a finished index, after checking all its files.

    Raises:
        FeatureIndexError: there is no index, it is of another version, or a file is missing, cut short or altered.
    """
    for place in (folder, folder / DATA):
        check_links(place, FeatureIndexError)
    file = folder / DATA / NOTE
    if not file.exists():
        begun = (folder / BUILDING).exists()
        what = "an index whose building was interrupted; call build_index again" if begun else "no index"
        raise FeatureIndexError(f"{folder} holds {what}.")
    content = read_json(file, dict[str, Any], FeatureIndexError, "the note of an index")
    version = content.get("format")
    if isinstance(version, int) and version not in (FORMAT, EXPORTED):
        raise FeatureIndexError(
            f"{folder} is in format {version} and this version reads format {FORMAT}; build the index anew."
        )
    note = as_form(content, IndexNote, FeatureIndexError, f"{file} is not the note of an index")
    if (version == EXPORTED) != ("export" in note):
        raise FeatureIndexError(f"{file} does not say whether it is of a corpus or of an export; build the index anew.")
    if "export" in note and note["export"].get("seal") != seal_of(_unsealed(content)):
        raise FeatureIndexError(f"{file} was altered after it was saved; build the index anew.")
    for name, about in note["files"].items():
        if not is_plain_name(name):
            raise FeatureIndexError(f"{file} names a file outside of its folder, {shown(name)}; build the index anew.")
        file = folder / DATA / name
        if not file.is_file() or file.stat().st_size != about["bytes"] or checksum(file) != about["sha256"]:
            raise FeatureIndexError(f"{file} is missing, cut short or altered; copy it again or build the index anew.")
    return note


def check_ours(path: Path) -> None:
    """Raise `FeatureIndexError` where `data` or `building`, which are replaced, hold files of something else."""
    data, building = path / DATA, path / BUILDING
    if data.exists() and not (data / NOTE).is_file() and not is_empty(data):
        raise FeatureIndexError(f"{data} is there already and is no index; choose another folder for the index.")
    try:
        ours = all(_written_here(one) for one in building.iterdir())
    except FileNotFoundError:  # there is none, or another process has just come to the end of its build
        return
    except OSError:  # it is a file, or may not be read
        ours = False
    if not ours:
        raise FeatureIndexError(f"{building} is there already and is no unfinished index; choose another folder.")


def _written_here(file: Path) -> bool:
    unfinished = file.name.startswith(f".{PROGRESS}.") and file.suffix == ".part"  # of a commit
    return unfinished or (not file.is_dir() and (file.suffix == ".bin" or file.name == PROGRESS))


def _unsealed(note: Mapping[str, Any]) -> dict[str, Any]:
    return {**note, "export": {name: one for name, one in note["export"].items() if name != "seal"}}


def mapped(file: Path, dtype: Any, *shape: int) -> np.ndarray:
    """A raw file as a memory-mapped array `[*shape]`; a first size of -1 follows from the file's size."""
    item = np.dtype(dtype).itemsize
    if shape[0] == -1:
        shape = (file.stat().st_size // (item * int(np.prod(shape[1:]))), *shape[1:])
    return np.memmap(file, dtype, "r", shape=shape) if np.prod(shape) else np.zeros(shape, dtype)


def write_array(file: Path, array: np.ndarray) -> None:
    """Write a raw file of an array's numbers; NumPy's own writing does not say that a disk is full."""
    with open(file, "wb") as opened:
        opened.write(np.ascontiguousarray(array).data)


def save_json(file: Path, content: Any, *, owned: bool = False, form: Any = None) -> None:
    """Write JSON, whole or not at all; `owned` and `form` as in `replacing`.

    Raises:
        FeatureIndexError: the file can't be written, or holds something else.
    """
    with replacing(file, FeatureIndexError, owned=owned, form=form) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False))
