"""From codes in the order of the corpus to entries sorted by feature, then by value: an external sort.

Chunks that fit into memory are sorted by feature and written; then, group by group of features, their slices of all
chunks are read and sorted by value. Both sorts are radix sorts on 16-bit numbers. Entries of equal value keep the order
of the corpus, so that the result does not depend on where the chunks end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.index.layout import mapped
from workbench.index.spool import CHUNK, DenseSpool, SparseSpool, descending


@dataclass(frozen=True)
class Block:
    """All entries of some neighbouring features."""

    first: int
    """Number of the first feature."""
    counts: np.ndarray
    """Entries of each, `[features]`."""
    rows: np.ndarray
    """Token positions, `[entries]` int32; feature after feature, each from its highest value down."""
    values: np.ndarray
    """`[entries]` float16."""

    def features(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each feature its number, rows and values."""
        ends = self.counts.cumsum()
        for place, (count, end) in enumerate(zip(self.counts.tolist(), ends.tolist(), strict=True)):
            yield self.first + place, self.rows[end - count : end], self.values[end - count : end]


class SortedChunks:
    """The entries of a sparse spool as chunks sorted by feature, on disk.

    Args:
        spool: the codes.
        folder: for the sorted files.
        chunk: entries in memory at a time.

    Attributes:
        counts: entries of each feature in each chunk, `[chunks, n_features]`.
    """

    def __init__(self, spool: SparseSpool, folder: Path, chunk: int = CHUNK):
        self.files = folder / "sorted-rows.bin", folder / "sorted-values.bin"
        self.chunk = chunk
        features, values, starts = spool.by_token()
        counts = []
        row, n_rows = 0, len(starts) - 1
        with open(self.files[0], "wb") as rows_file, open(self.files[1], "wb") as values_file:
            while row < n_rows:
                last = int(np.searchsorted(starts, starts[row] + chunk, "right")) - 1
                last = min(max(last, row + 1), n_rows)
                part = features[starts[row] : starts[last]]
                order = np.argsort(part, kind="stable")
                rows = np.repeat(np.arange(row, last, dtype=np.int32), np.diff(starts[row : last + 1]))
                rows_file.write(rows[order].data)
                values_file.write(values[starts[row] : starts[last]][order].data)
                counts.append(np.bincount(part, minlength=spool.n_features))
                row = last
        self.counts = np.array(counts).reshape(-1, spool.n_features)

    def blocks(self) -> Iterator[Block]:
        """Blocks of features in ascending order, of about `chunk` entries each."""
        n = int(self.counts.sum())
        rows, values = mapped(self.files[0], np.int32, n), mapped(self.files[1], np.float16, n)
        totals = self.counts.sum(0)  # [n_features]
        ends = np.concatenate([[0], totals.cumsum()])
        # where the slice of a feature begins in a chunk, [chunks, n_features + 1]
        begins = np.pad(self.counts.cumsum(1), ((0, 0), (1, 0)))
        begins += np.pad(self.counts.sum(1).cumsum(), (1, 0))[:-1, None]
        first = 0
        while first < len(totals):
            last = int(np.searchsorted(ends, ends[first] + self.chunk, "right")) - 1
            last = min(max(last, first + 1), len(totals))
            slices = [slice(*pair) for pair in begins[:, [first, last]].tolist()]
            of = np.concatenate([np.repeat(np.arange(last - first), c) for c in self.counts[:, first:last]] or [[]])
            block_rows = np.concatenate([rows[where] for where in slices] or [rows])
            block_values = np.concatenate([values[where] for where in slices] or [values])
            by_value = np.argsort(descending(block_values), kind="stable")
            group = of[by_value].astype(np.uint16 if last - first <= 1 << 16 else np.int32)
            order = by_value[np.argsort(group, kind="stable")]
            yield Block(first, totals[first:last], block_rows[order], block_values[order])
            first = last


def dense_blocks(spool: DenseSpool, n_tokens: int, chunk: int = CHUNK) -> Iterator[Block]:
    """Blocks of a dense spool, without values of 0."""
    for first, columns in spool.columns(n_tokens, chunk):
        rows, values, counts = [], [], []
        for column in columns:
            here = np.flatnonzero(column).astype(np.int32)
            order = np.argsort(descending(column[here]), kind="stable")
            rows.append(here[order])
            values.append(column[rows[-1]])
            counts.append(len(here))
        yield Block(first, np.array(counts), np.concatenate(rows), np.concatenate(values))
