"""The arrays of an npz file, mapped from where they lie in it.

An npz file is a zip archive of npy files. `numpy.savez` stores them as they are, so that each array has a place in the
file; packed ones and arrays of Python objects are refused.

Sources: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; APPNOTE.TXT of PKWARE, 4.3.7, for the
header of a member.
"""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import reason_of, shown

HEADER = struct.Struct("<4s22xHH")
"""A member's header: the mark, and the lengths of its name and of what else stands before its content."""
MARK = b"PK\x03\x04"
LARGEST_HEADER = 10_000
"""Bytes of an npy file's header, at most, as in numpy."""
MOST = 1_000
"""Arrays of a file, at most."""
TYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
TYPES |= {"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8}
"""Types of numbers that are read, by numpy's words without the order of bytes."""


@dataclass(frozen=True)
class Placed:
    """An array and where it lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    by_columns: bool
    """Whether its first index runs fastest in the file."""
    start: int
    """The first of its bytes in the file."""

    @property
    def stop(self) -> int:
        """The byte behind its last one."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    @property
    def kind(self) -> torch.dtype:
        """Its type as torch has it."""
        return TYPES[self.dtype.str[1:]]


def read_npz(file: Path, error: type[WorkbenchError], what: str) -> tuple[dict[str, Tensor], dict[str, Placed]]:
    """The arrays of a file, mapped, and their places.

    Args:
        file: an npz file of `numpy.savez`.
        error: the room's own error.
        what: the file in the sentence of the error: "its params.npz".

    Raises:
        WorkbenchError: of the given kind: it is damaged, packed, or holds something else than arrays of numbers. The
            message does not name the path.
    """
    try:
        size = file.stat().st_size
        with zipfile.ZipFile(file) as archive, open(file, "rb") as opened:
            members = archive.infolist()
            if len(members) > MOST:
                raise error(f"{what} holds {len(members):,} arrays, and a dictionary has a few")
            places = {_name(one, error, what): _place(one, opened, size, error, what) for one in members}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as wrong:
        raise error(f"{what} is damaged ({reason_of(wrong)[:120].rstrip('.')}); copy it again") from wrong
    if len(places) < len(members):
        raise error(f"{what} holds two arrays of one name")
    return {name: _mapped(file, place) for name, place in places.items()}, places


def _name(member: zipfile.ZipInfo, error: type[WorkbenchError], what: str) -> str:
    if not member.filename.endswith(".npy"):
        raise error(f"{what} holds {shown(member.filename)}, which is no array")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise error(f"in {what} {shown(member.filename)} is packed; save the arrays with numpy.savez")
    return member.filename.removesuffix(".npy")


def _place(member: zipfile.ZipInfo, opened: BinaryIO, size: int, error: type[WorkbenchError], what: str) -> Placed:
    """Where a stored array lies, from its own header; nothing of it is read."""
    opened.seek(member.header_offset)
    mark, name_length, more = HEADER.unpack(opened.read(HEADER.size))
    if mark != MARK:
        raise error(f"{what} is damaged: {shown(member.filename)} is not where the file says; copy it again")
    content = member.header_offset + HEADER.size + name_length + more
    opened.seek(content)
    major, _ = npy.read_magic(opened)
    if major not in (1, 2):
        raise error(f"in {what} {shown(member.filename)} has an npy format that is not known here, {major}")
    reader = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, by_columns, dtype = reader(opened, max_header_size=LARGEST_HEADER)
    if dtype.hasobject:
        raise error(f"in {what} {shown(member.filename)} holds Python objects, which run code when they are read")
    if dtype.str[1:] not in TYPES or dtype.str[0] == ">":
        raise error(f"in {what} {shown(member.filename)} holds {shown(str(dtype))}, which are no numbers that are read")
    placed = Placed(dtype, tuple(shape), by_columns, opened.tell())
    if min(shape, default=1) < 0 or placed.stop != content + member.file_size or placed.stop > size:
        raise error(f"{what} is damaged: {shown(member.filename)} has another size than it says; copy it again")
    return placed


def _mapped(file: Path, place: Placed) -> Tensor:
    """An array as a tensor on memory that is mapped from the file, which changes do not reach."""
    if place.stop == place.start:
        return torch.zeros(place.shape, dtype=place.kind)
    order = "F" if place.by_columns else "C"
    return torch.from_numpy(np.memmap(file, place.dtype, "c", place.start, place.shape, order))
