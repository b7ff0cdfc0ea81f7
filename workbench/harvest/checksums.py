"""Checksums of files that grow: one CRC-32 for each block, so that a part of a file is checked without the rest.

They are taken from what is written, and nothing is read again for them. They go on where a killed process stopped: the
CRC-32 of a block that is not full is a state that can be continued.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np

BLOCK = 1 << 22
"""Bytes of a block."""


def blocks_of(size: int) -> int:
    """The number of blocks of so many bytes."""
    return -(-size // BLOCK)


class SummedFile:
    """A file that is appended to, with the checksums of its blocks.

    Args:
        file: open for appending; what is behind `size` is cut off.
        size: bytes of the file that count.
        sums: the checksums of the blocks so far, the last of which may not be full; None takes none.
    """

    def __init__(self, file: IO[bytes], size: int, sums: Iterable[int] | None):
        file.truncate(size)
        self.file, self.size = file, size
        self.sums = None if sums is None else list(sums)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.file.write(data)
        rest = memoryview(data)
        while self.sums is not None and rest:
            inside = self.size % BLOCK
            part, rest = rest[: BLOCK - inside], rest[BLOCK - inside :]
            if inside:
                self.sums[-1] = zlib.crc32(part, self.sums[-1])
            else:
                self.sums.append(zlib.crc32(part))
            self.size += len(part)


class CheckedRows:
    """Checks the rows of a finished file, each of its blocks at its first use.

    Args:
        rows: memory-mapped, `[n]` or `[n, width]`.
        sums: the checksums of the blocks.
    """

    def __init__(self, rows: np.ndarray, sums: Iterable[int]):
        self.data, self.sums = rows.reshape(-1).view(np.uint8), list(sums)
        self._of_row = self.data.size // max(len(rows), 1)  # bytes
        self._known = np.zeros(len(self.sums), dtype=bool)

    @property
    def fits(self) -> bool:
        """Whether there are as many checksums as blocks."""
        return len(self.sums) == blocks_of(self.data.size)

    def altered(self, rows: slice | np.ndarray) -> bool:
        """Whether the file has other bytes than it was written with, in a block that holds some of these rows.

        Args:
            rows: a slice, numbers or truth values, as for an array.
        """
        count = self.data.size // max(self._of_row, 1)
        if self._known.all():
            return False
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(count)
            blocks = np.arange(start * self._of_row // BLOCK, blocks_of(max(start, stop) * self._of_row))
        else:
            numbers = np.arange(*rows.indices(count)) if isinstance(rows, slice) else rows
            numbers = np.flatnonzero(numbers) if numbers.dtype == bool else np.atleast_1d(numbers) % count
            blocks = np.unique(np.concatenate([numbers * self._of_row, (numbers + 1) * self._of_row - 1]) // BLOCK)
        for block in blocks[~self._known[blocks]].tolist():
            if zlib.crc32(self.data[block * BLOCK : (block + 1) * BLOCK].data) != self.sums[block]:
                return True
            self._known[block] = True
        return False
