"""The tensors of a safetensors file, read from the disk in pieces and not through a mapping.

What a process has read of a mapping counts as its memory. A reader that looks at every value once, for a hash or for
values that are not finite, holds one piece here.

Source: https://github.com/huggingface/safetensors, "Format": eight bytes with the length of a header in JSON, the
header with each tensor's place, and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.forms import parse_json
from workbench.core.hashing import combined

PIECE = 2**20
"""Bytes read at a time."""
METADATA = "__metadata__"
"""The key of the header that names no tensor."""


def file_fingerprint(
    file: Path, like: dict[str, Tensor], error: type[WorkbenchError], look: Callable[[str, Tensor], None]
) -> str:
    """The `fingerprint` of a file's tensors, from one pass over the file.

    Args:
        file: a safetensors file.
        like: a tensor of the type and the shape of each, such as those that are mapped from it.
        error: the room's own error.
        look: called with the name and the values of each piece, `[n]`, in a thread; the memory is used again.

    Raises:
        WorkbenchError: of the given kind: the file ends too soon, or its header is another one.
        OSError: it can't be read.
    """
    places = tensor_places(file, error)

    def digest(name: str) -> bytes:
        whole = hashlib.sha256(f"{name} {like[name].dtype} {tuple(like[name].shape)}".encode())
        for piece in _pieces(file, places[name], error):
            look(name, piece.view(like[name].dtype))
            whole.update(piece.numpy().data)
        return whole.digest()

    with ThreadPoolExecutor(2) as pool:  # hashing and reading release the interpreter lock
        return combined(dict(zip(sorted(like), pool.map(digest, sorted(like)), strict=True)))


def look_at_file(
    file: Path,
    places: Mapping[str, tuple[int, int]],
    types: Mapping[str, torch.dtype],
    error: type[WorkbenchError],
    look: Callable[[str, Tensor], None],
) -> None:
    """One pass over the tensors of a file, without a hash.

    Args:
        file: any file that holds tensors as they are in memory.
        places: where the bytes of each begin and end.
        types: of their values.
        error: as in `file_fingerprint`.
        look: as in `file_fingerprint`.

    Raises:
        WorkbenchError: of the given kind: the file ends too soon.
        OSError: it can't be read.
    """

    def each(name: str) -> None:
        for piece in _pieces(file, places[name], error):
            look(name, piece.view(types[name]))

    with ThreadPoolExecutor(2) as pool:  # reading and sums release the interpreter lock
        for _ in pool.map(each, sorted(places)):
            pass


def tensor_places(file: Path, error: type[WorkbenchError]) -> dict[str, tuple[int, int]]:
    """Where the bytes of each tensor begin and end in a safetensors file."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = parse_json(opened.read(size).decode(errors="replace"), dict[str, Any], error, f"{file} is damaged")
    offsets = {name: one["data_offsets"] for name, one in header.items() if name != METADATA}
    return {name: (8 + size + start, 8 + size + stop) for name, (start, stop) in offsets.items()}


def _pieces(file: Path, place: tuple[int, int], error: type[WorkbenchError]) -> Iterator[Tensor]:
    """The bytes between two places of a file, `PIECE` of them at a time, in memory that is used again."""
    start, stop = place
    room = torch.empty(min(PIECE, stop - start), dtype=torch.uint8)
    with open(file, "rb", buffering=0) as opened:
        opened.seek(start)
        while start < stop:
            piece = room[: stop - start]
            view, count = piece.numpy().data, 0
            while count < len(view):
                more = opened.readinto(view[count:])
                if not more:
                    raise error(f"{file} is cut short; copy it again.")
                count += more
            yield piece
            start += count
