"""The header of a GGUF file: its fields and where its tensors lie, checked against the size of the file.

A reader of its own, since that of the package `gguf` believes every length that it reads and makes an array for each
token. Every length, count and offset is compared with the bytes that are left before anything is allocated. The format
is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.paths import check_stays
from workbench.core.type_words import reason_of, shown
from workbench.model.weights import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
"""Forms of numbers by their kind."""
BOOL, STRING, ARRAY = 7, 8, 9
MOST_AXES = 4
MOST_TENSORS = 2**16
MOST_FIELDS = 2**16
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How the name of a file ends that holds a part of a model."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and in which form."""

    name: str
    file: Path
    form: int
    """The number of its type in ggml."""
    shape: tuple[int, ...]
    """As torch writes it: the axis whose values are neighbours is the last one."""
    offset: int
    """In the file, in bytes."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    fields: dict[str, Any]
    """Numbers, texts, lists of texts, and arrays of numbers."""
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture, as llama.cpp calls it."""
        return self.text("general.architecture")

    def text(self, key: str, default: str | None = None) -> str:
        """A field that is a text; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise self.fault(key, "a text")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A field that is a whole number, 0 or more; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key, default)
        if type(value) is not int or value < 0:
            raise self.fault(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A field that is a finite number; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fault(key, "a finite number")
        return float(value)

    def yes(self, key: str, default: bool | None = None) -> bool:
        """A field that is true or false; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key, default)
        if type(value) is not bool:
            raise self.fault(key, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        """A field that is a list of texts; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key)
        if not isinstance(value, list):
            raise self.fault(key, "a list of texts")
        return value

    def numbers(self, key: str) -> np.ndarray:
        """A field that is a list of numbers; raises `ModelError` where it is missing or another thing."""
        value = self.fields.get(key)
        if not isinstance(value, np.ndarray):
            raise self.fault(key, "a list of numbers")
        return value

    def fault(self, key: str, wanted: str) -> ModelError:
        """The error of a field that is missing, or that is not what it has to be."""
        if key not in self.fields:
            return ModelError(f"{self.path} does not state {key}, which Workbench needs; convert the model again.")
        value = self.fields[key]
        said = f"a list of {len(value):,}" if isinstance(value, list | np.ndarray) else shown(value)
        return ModelError(f"{self.path} states {key} as {said}, not as {wanted}; convert the model again.")


def read_header(path: Path) -> Header:
    """The header of a GGUF file, or of all files of a model in several parts; no weight is read.

    Args:
        path: the file, or the first one of several (`…-00001-of-00003.gguf`), which lie in one folder.

    Raises:
        ModelError: it is no GGUF file, damaged, cut off, in another version or byte order, or not the first part.
    """
    first = _read_file(path)
    count = first.whole("split.count", 1) or 1
    if count == 1:
        return first
    named = PART.search(path.name)
    if named is None or int(named[2]) != count:
        raise ModelError(f"{path} is one of {count:,} parts, but its name does not end in -00001-of-{count:05}.gguf.")
    if first.whole("split.no") != 0 or int(named[1]) != 1:
        raise ModelError(f"{path} is not the first of {count:,} parts; give the path of -00001-of-{count:05}.gguf.")
    tensors = dict(first.tensors)
    for number in range(1, count):
        part = path.with_name(f"{path.name[: named.start()]}-{number + 1:05}-of-{count:05}.gguf")
        check_stays(part, path.parent, ModelError)
        if not part.is_file():
            raise ModelError(f"{path} is one of {count:,} parts, and {part.name} is not beside it; copy all of them.")
        other = _read_file(part)
        if (other.whole("split.no"), other.whole("split.count")) != (number, count):
            raise ModelError(f"{part} is not part {number + 1:,} of {path.name}; copy all parts again.")
        if twice := tensors.keys() & other.tensors.keys():
            raise ModelError(f"{part} holds {min(twice)}, which another part of the model holds too; copy them again.")
        tensors |= other.tensors
    if first.whole("split.tensors.count", len(tensors)) != len(tensors):
        raise ModelError(f"The parts of {path} hold {len(tensors):,} tensors, not as many as it states; copy all.")
    return Header(path, first.fields, tensors)


def _read_file(path: Path) -> Header:
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).read()
    except (OSError, ValueError) as error:  # an empty file can't be mapped
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} can't be read as a GGUF file: {reason_of(error)}.") from error


class _Reader:
    """Reads the bytes of one file from the front to the back."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path = path
        self.content = content
        self.at = len(MAGIC)

    def read(self) -> Header:
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "in the byte order of another machine (big-endian)" if swapped else f"in version {version:,}"
            raise ModelError(f"{self.path} is {what}, and Workbench reads little-endian files of versions 2 and 3.")
        n_tensors, n_fields = self._number("<Q"), self._number("<Q")
        self._allow(n_tensors, 24, "tensors", MOST_TENSORS)
        self._allow(n_fields, 13, "fields", MOST_FIELDS)
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._text()
            if key in fields:
                raise self._damaged(f"the field {shown(key)} stands there twice")
            fields[key] = self._value(self._number("<I"))
        header = Header(self.path, fields, {})
        entries = [self._entry() for _ in range(n_tensors)]
        self._place(header, entries)
        return header

    def _place(self, header: Header, entries: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        """Find where each tensor lies: one behind the other, as every writer puts them, up to the end of the file."""
        step = header.whole("general.alignment", 32)
        if step == 0 or step & (step - 1) or step > 2**20:
            raise self._damaged(f"general.alignment is {step:,}, which is no power of two up to 2^20")
        start = expected = -(-self.at // step) * step
        for name, shape, form, offset in entries:
            size = self._size(name, shape, form)
            if start + offset != expected:
                raise self._damaged(f"{shown(name)} does not lie behind the tensor before it")
            if name in header.tensors:
                raise self._damaged(f"the tensor {shown(name)} stands there twice")
            header.tensors[name] = StoredTensor(name, self.path, form, shape, expected, size)
            if expected + size > len(self.content):
                missing = expected + size - len(self.content)
                raise ModelError(
                    f"{self.path} is cut off: {shown(name)} ends {missing:,} bytes behind the file's end; fetch it "
                    "again, or join its pieces first if it came in pieces."
                )
            expected = -(-(expected + size) // step) * step
        if len(self.content) > expected:
            raise self._damaged(f"{len(self.content) - expected:,} bytes follow its last tensor")

    def _size(self, name: str, shape: tuple[int, ...], form: int) -> int:
        """Bytes of a tensor."""
        from gguf import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        if form not in sizes:
            raise ModelError(
                f"{self.path} holds {shown(name)} in type {form} of ggml, which the installed package gguf does not "
                "know; take a file in another quantisation, such as Q8_0."
            )
        block, size = sizes[form]
        if not shape or shape[-1] % block:
            raise self._damaged(f"a row of {shown(name)} is no whole number of blocks")
        return math.prod(shape) // block * size

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, axes = self._text(), self._number("<I")
        if not 1 <= axes <= MOST_AXES:
            raise self._damaged(f"the tensor {shown(name)} has {axes:,} axes")
        shape = tuple(self._number("<Q") for _ in range(axes))[::-1]
        if 0 in shape or math.prod(shape) > 8 * len(self.content):  # no type has less than a bit for a value
            raise ModelError(
                f"{self.path} claims a tensor {shown(name)} of {' by '.join(f'{size:,}' for size in shape)}, more than "
                f"its {len(self.content):,} bytes hold; fetch it again, or join its pieces first if it came in pieces."
            )
        return name, shape, self._number("<I"), self._number("<Q")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            return self._list()
        if kind not in SCALARS:
            raise self._damaged(f"a field has the unknown type {kind:,}")
        value = self._number(SCALARS[kind])
        return bool(value) if kind == BOOL else value

    def _list(self) -> Any:
        """A list of texts, or an array of numbers."""
        kind, count = self._number("<I"), self._number("<Q")
        if kind == STRING:
            self._allow(count, 8, "texts")
            return [self._text() for _ in range(count)]
        if kind not in SCALARS:
            raise self._damaged(f"a list has members of type {kind:,}")
        form = np.dtype("?" if kind == BOOL else SCALARS[kind])
        self._allow(count, form.itemsize, "numbers")
        values = np.frombuffer(self.content, form, count, self.at).copy()  # a view would keep the file mapped
        self.at += values.nbytes
        return values

    def _text(self) -> str:
        size = self._number("<Q")
        self._allow(size, 1, "bytes of a text")
        raw = self.content[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a text is no UTF-8") from error

    def _number(self, form: str) -> Any:
        try:
            (value,) = struct.unpack_from(form, self.content, self.at)
        except struct.error as error:
            raise self._damaged("it ends inside its header") from error
        self.at += struct.calcsize(form)
        return value

    def _allow(self, count: int, least: int, what: str, most: int | None = None) -> None:
        """Refuse a count of things that the rest of the file can't hold."""
        if count * least > len(self.content) - self.at or (most is not None and count > most):
            raise self._damaged(f"it claims {count:,} {what}")

    def _damaged(self, how: str) -> ModelError:
        return ModelError(f"{self.path} is cut off or damaged: {how}; fetch it again.")
