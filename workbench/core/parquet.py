"""The room that a Parquet file takes when it is read, by its pages and not by its footer.

Readers take as much memory for a page as its header says. The headers are Thrift structs in the compact form, one in
front of each page: https://parquet.apache.org/docs/file-format and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO

from workbench.core.errors import WorkbenchError

FOLDS, LEAST_ROOM = 200, 64 * 2**20
"""How often its own size the texts of a Parquet file may take, and bytes that they always may; prose packs into a third
to a tenth."""
UNCOMPRESSED, COMPRESSED = 2, 3
"""Fields of a header: bytes of the page when it is read, and in the file."""
LONGEST = 2**16
"""Bytes of the longest header that is read; statistics stand in it."""
PAGES = 100_000
"""Pages that are looked at, at most."""
DEEPEST = 8
"""Structs inside a header, one in another."""
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12


class PageError(ValueError):
    """A page without a whole header."""


def room_for(size: int) -> int:
    """Bytes that the texts of a Parquet file of this size may take."""
    return max(FOLDS * size, LEAST_ROOM)


def read_whole(content: bytes | memoryview, what: str, error: type[WorkbenchError]) -> Any:
    """The `pyarrow.Table` in the bytes of a Parquet file.

    Args:
        content: of the file.
        what: the file, for the sentence.
        error: the room's own error.

    Raises:
        WorkbenchError: of the given kind: a damaged file, or one that unfolds to far more than its size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.py_buffer(content)
    try:
        with pq.ParquetFile(pa.BufferReader(buffer)) as opened:
            pages: Any = pa.BufferReader(buffer)
            if unfolded_size(pages, opened.metadata) > room_for(len(content)):
                raise error(f"{what} unfolds to more than {FOLDS} times its size; make it again.")
            return opened.read()
    except (pa.ArrowException, PageError) as wrong:
        raise error(f"{what} is damaged ({str(wrong).splitlines()[0].rstrip('.')}); make it again.") from wrong


def unfolded_size(opened: BinaryIO, metadata: Any, columns: Collection[str] | None = None) -> int:
    """Bytes that the pages of columns take when they are read, and at least those that the footer states.

    Args:
        opened: the file.
        metadata: its `pyarrow.parquet.FileMetaData`.
        columns: paths in the schema; None for all.

    Raises:
        PageError: a header that is damaged, or too many pages.
    """
    total = pages = 0
    for group in (metadata.row_group(place) for place in range(metadata.num_row_groups)):
        for chunk in (group.column(place) for place in range(group.num_columns)):
            if columns is not None and chunk.path_in_schema not in columns:
                continue
            in_pages = 0
            for size in _pages(opened, chunk):
                in_pages, pages = in_pages + size, pages + 1
                if pages > PAGES:
                    raise PageError(f"it has more than {PAGES:,} pages")
            total += max(in_pages, chunk.total_uncompressed_size)
    return total


def _pages(opened: BinaryIO, chunk: Any) -> Iterator[int]:
    """The bytes of each page of a column's chunk, when it is read."""
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    at = min(start for start in starts if start)
    end = at + chunk.total_compressed_size
    while at < end:
        opened.seek(at)
        header = _Header(opened.read(LONGEST))
        fields = header.struct()
        sizes = fields.get(UNCOMPRESSED, -1), fields.get(COMPRESSED, -1)
        if min(sizes) < 0:
            raise PageError("a page has no sizes")
        yield sizes[0]
        at += header.at + sizes[1]


class _Header:
    """A Thrift struct in the compact form, at the beginning of some bytes."""

    def __init__(self, content: bytes):
        self._content, self.at, self._depth = content, 0, 0

    def struct(self) -> dict[int, int]:
        """The whole numbers in its fields, by the number of the field; `at` is its end."""
        if (depth := self._depth + 1) > DEEPEST:
            raise PageError("a page has a header inside a header without end")
        fields, number, self._depth = {}, 0, depth
        while (head := self._byte()) & 15 != STOP:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._whole()
            value = self._value(kind)
            if value is not None:
                fields[number] = value
        self._depth = depth - 1
        return fields

    def _value(self, kind: int) -> int | None:
        """The value of a field if it is a whole number; what is behind it is next in any case."""
        if kind in (TRUE, FALSE):
            return None
        skip: dict[int, Callable[[], object]] = {
            BYTE: lambda: self._skip(1),
            DOUBLE: lambda: self._skip(8),
            BINARY: lambda: self._skip(self._varint()),
            LIST: self._list,
            SET: self._list,
            MAP: self._map,
            STRUCT: self.struct,
        }
        if kind not in skip:
            return self._whole()
        skip[kind]()
        return None

    def _list(self) -> None:
        head = self._byte()
        size = self._varint() if head >> 4 == 15 else head >> 4
        self._items([head & 15], size)

    def _map(self) -> None:
        size = self._varint()
        kinds = self._byte() if size else 0
        self._items([kinds >> 4, kinds & 15], size)

    def _items(self, kinds: list[int], size: int) -> None:
        for kind in itertools.chain.from_iterable(itertools.repeat(kinds, size)):
            if kind in (TRUE, FALSE):  # a byte each, outside of a struct
                self._skip(1)
            else:
                self._value(kind)

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise PageError("a page has a number without end in its header")

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self._content):
            raise PageError("a page has no whole header")

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self.at - 1]
