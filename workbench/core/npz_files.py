"""The arrays of an npz file, mapped from where they lie in it.

An npz file is a zip archive of npy files. `numpy.savez` stores them as they are, so that each array has a place in the
file; packed ones and arrays of Python objects are refused.

Sources: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; APPNOTE.TXT of PKWARE, 4.3.7, for the
header of a member.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
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

DESCRIPTION = re.compile(
    rb"\{'descr': '([<|](?:f2|f4|f8|i1|i2|i4|i8|u1))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n"
)
"""An npy file's header as numpy writes it: type, order and shape."""


@dataclass(frozen=True)
class Placed:
    """An array and where it lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    by_columns: bool
    """Whether its first index runs fastest in the file."""
    start: int
    """The first of its bytes in the file."""
    begun: int
    """CRC-32 of what stands before them in their npy file."""
    whole: int
    """CRC-32 of that whole file, as the archive states it."""

    @property
    def stop(self) -> int:
        """The byte behind its last one."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    @property
    def kind(self) -> torch.dtype:
        """Its type as torch has it."""
        return TYPES[self.dtype.str[1:]]

    def checked(self, before: int, piece: Tensor) -> int:
        """The CRC-32 behind a further piece of its values, `[n]`, which follows what is counted in `before`."""
        return zlib.crc32(piece.view(torch.uint8).numpy().data, before)


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
    begin = opened.read(8)
    if begin[:6] != b"\x93NUMPY" or begin[6] not in (1, 2):
        raise error(f"in {what} {shown(member.filename)} is no npy file of a format that is known here")
    length = opened.read(2 if begin[6] == 1 else 4)
    header = opened.read(min(int.from_bytes(length, "little"), LARGEST_HEADER))
    stated = DESCRIPTION.fullmatch(header)
    if stated is None:
        if re.match(rb"\{'descr': '\|O", header):
            raise error(f"in {what} {shown(member.filename)} holds Python objects, which run code when they are read")
        raise error(f"in {what} {shown(member.filename)} holds no array of numbers that are read")
    shape = tuple(int(one) for one in stated[3].replace(b",", b" ").split())
    dtype, by_columns = np.dtype(stated[1].decode()), stated[2] == b"True"
    checked = zlib.crc32(begin + length + header)
    placed = Placed(dtype, shape, by_columns, opened.tell(), checked, member.CRC)
    if placed.stop != content + member.file_size or placed.stop > size:
        raise error(f"{what} is damaged: {shown(member.filename)} has another size than it says; copy it again")
    return placed


def _mapped(file: Path, place: Placed) -> Tensor:
    """An array as a tensor on memory that is mapped from the file, which changes do not reach."""
    if place.stop == place.start:
        return torch.zeros(place.shape, dtype=place.kind)
    order = "F" if place.by_columns else "C"
    return torch.from_numpy(np.memmap(file, place.dtype, "c", place.start, place.shape, order))
