"""What an index is on disk, and how it is checked.

    index/
      people.sqlite    labels, notes and stars; a rebuild never touches it
      data/            all that is computed; replaced as a whole
      building/        the work of a build that has not come to its end

`data/index.json` says what it was made from and lists every other file with its size and checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing

FORMAT = 1
"""Version of the files."""
DATA, BUILDING, PEOPLE, NOTE = "data", "building", "people.sqlite", "index.json"
NEEDED = ("dictionary", "harvest", "n_tokens", "keep", "signed")
"""What a note says besides."""
WHOLE = 1 << 25
"""Files up to this size (32 MiB) are checked byte for byte; of larger ones as much, in evenly spaced pieces."""
PIECE = 1 << 16


class FeatureIndexError(WorkbenchError):
    """A feature index that can't be built, found, read or searched as asked."""


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
    """Write `index.json` beside the finished files of `folder`, once they have reached the disk."""
    files = {}
    for file in sorted(folder.iterdir()):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        files[file.name] = {"bytes": file.stat().st_size, "sha256": checksum(file)}
    (folder / NOTE).write_text(json.dumps({"format": FORMAT, **note, "files": files}, indent=2))


def read_note(folder: Path) -> dict[str, Any]:
    """The note of a finished index, all files checked.

    Raises:
        FeatureIndexError: there is none, it is of another version, or a file is missing, cut short or altered.
    """
    data = folder / DATA
    try:
        note = json.loads((data / NOTE).read_text())
        version, files = note["format"], note["files"]
        lacking = [name for name in NEEDED if version == FORMAT and name not in note]
        if lacking:
            raise KeyError(*lacking)
    except (FileNotFoundError, NotADirectoryError):
        begun = (folder / BUILDING).exists()
        what = "an index whose building was interrupted; call build_index again" if begun else "no index"
        raise FeatureIndexError(f"{folder} holds {what}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureIndexError(f"{data / NOTE} can't be read ({error}); build the index anew.") from error
    if version != FORMAT:
        raise FeatureIndexError(
            f"{folder} is in format {version} and this version reads format {FORMAT}; build the index anew."
        )
    for name, said in files.items():
        file = data / name
        if not file.exists() or file.stat().st_size != said["bytes"] or checksum(file) != said["sha256"]:
            raise FeatureIndexError(f"{file} is missing, cut short or altered; copy it again or build the index anew.")
    return note


def mapped(file: Path, dtype: Any, *shape: int) -> np.ndarray:
    """A raw file as a memory-mapped array `[*shape]`; with -1 the first size follows from the file's."""
    item = np.dtype(dtype).itemsize
    if shape[0] == -1:
        shape = (file.stat().st_size // (item * int(np.prod(shape[1:]))), *shape[1:])
    return np.memmap(file, dtype, "r", shape=shape) if np.prod(shape) else np.zeros(shape, dtype)


def save_json(file: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False))
