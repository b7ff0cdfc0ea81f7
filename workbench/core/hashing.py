"""One identity for each thing: SHA-256 over files, tensors and plain data; and whether tensors hold finite numbers."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
"""Types of 16-bit floats."""
PIECE = 2**18
"""Values of a tensor that are looked at together."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, independent of their order; in hex."""
    return _fingerprint(tensors, digest)


def values_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The fingerprint of tensors of which those of 16-bit floats count as the float32 that they are equal to."""
    return _fingerprint(tensors, values_digest)


def _fingerprint(tensors: Mapping[str, Tensor], digest: Callable[[str, Tensor], bytes]) -> str:
    names = sorted(tensors)
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter lock
        return combined(dict(zip(names, pool.map(digest, names, [tensors[name] for name in names]), strict=True)))


def digest(name: str, tensor: Tensor) -> bytes:
    """What one tensor adds to a fingerprint."""
    return _digest(name, tensor, tensor.dtype)


def values_digest(name: str, tensor: Tensor) -> bytes:
    """What one tensor adds to a fingerprint of values."""
    return _digest(name, tensor, torch.float32 if tensor.dtype in HALVES else tensor.dtype)


def _digest(name: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    whole = Digest(name, tensor.shape, dtype)
    for piece in in_pieces(tensor):
        whole.update(piece)
    return whole.digest()


class Digest:
    """What one tensor adds to a fingerprint, from pieces of it that follow one another.

    Args:
        name: of the tensor.
        shape: of all of it.
        dtype: that its values count as: its own for a `fingerprint`, float32 for 16 bits in a `values_fingerprint`.
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: torch.dtype):
        self._whole = hashlib.sha256(f"{name} {dtype} {tuple(shape)}".encode())
        self._dtype = dtype

    def update(self, piece: Tensor) -> None:
        """Add the next piece, of any shape and type."""
        self._whole.update(piece.to("cpu", self._dtype).contiguous().flatten().view(torch.uint8).numpy().data)

    def digest(self) -> bytes:
        """What `combined` takes."""
        return self._whole.digest()


def in_pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in parts of about `PIECE` values that follow each other in memory, or are copied so part by part."""
    tensor = tensor.detach()
    if tensor.is_contiguous() or tensor.ndim < 2:
        yield from tensor.reshape(-1).split(PIECE)
    else:
        yield from tensor.split(max(PIECE // max(tensor[0].numel(), 1), 1))


def combined(digests: Mapping[str, bytes]) -> str:
    """The fingerprint of tensors that were looked at one at a time."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def hash_of(content: Any) -> str:
    """SHA-256 of plain data as JSON, in hex; the order of keys does not count."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False, default=str).encode(errors="replace")
    ).hexdigest()


def file_hashes(folder: Path, patterns: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of the files of a folder whose names fit one of these patterns, by name.

    Args:
        folder: where they are.
        patterns: as for `fnmatch`.
        without: patterns of names that are left out.
    """
    known, left_out = list(patterns), list(without)
    return {
        file.name: file_sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and _fits(file.name, known) and not _fits(file.name, left_out)
    }


def first_difference(recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first file that differs between two results of `file_hashes`, and how; empty where none does."""
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            lacks, new = name not in found, name not in recorded
            return f"{name} is {'missing' if lacks else 'new' if new else 'another'}"
    return ""


def not_finite(tensors: Mapping[str, Tensor], *, infinite: Sequence[str] = ()) -> str:
    """The name of the first tensor with a value that is not a finite number; empty where there is none.

    A sum reads a tensor once and at the speed of memory, as the ends of 16-bit values do. It is finite only if every
    value is; where it is not, the values are looked at one by one, since a sum of large ones overflows.

    Args:
        tensors: by name; tensors of whole numbers are finite.
        infinite: names of tensors that may hold infinity; NaN is not allowed there either.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        kind = torch.promote_types(tensor.dtype, torch.float32)
        for piece in in_pieces(tensor):
            if tensor.dtype in HALVES:  # a sum in another type copies what it reads
                whole = all(math.isfinite(float(end)) for end in piece.aminmax())  # NaN is an end of what holds it
            else:
                whole = math.isfinite(float(piece.sum(dtype=kind)))
            if whole:
                continue
            if bool((piece.isnan() if name in infinite else ~piece.isfinite()).any()):
                return name
    return ""


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
