"""Entries and statistics of an index, from the codes of a whole corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.index.cofiring import Cofiring
from workbench.index.entries import EntriesWriter
from workbench.index.selection import TOP
from workbench.index.sorting import Block, SortedChunks, dense_blocks
from workbench.index.spool import DenseSpool, SparseSpool, Spool
from workbench.index.statistics import ValueStatistics, write_statistics
from workbench.index.tokens import TokenTable


def write_entries(
    folder: Path,
    spool: Spool,
    note: Mapping[str, Any],
    relations: Mapping[str, np.ndarray],
    check: Callable[[float], None],
) -> None:
    """Sort the codes and write entries and statistics.

    Args:
        folder: the folder of the files, with the token files in it.
        spool: the codes of all tokens.
        note: `n_tokens`, `keep` and `signed` of the index.
        relations: further columns of statistics.
        check: called often with the share done, from 0.3 to 1; it may raise an error to stop.
    """
    tokens = TokenTable(folder, note["n_tokens"])
    cofiring, blocks = _sorted(spool, len(tokens))
    statistics = ValueStatistics(spool.n_features, len(tokens))
    peaks = np.full((spool.n_features, TOP), -1, np.int32)
    with EntriesWriter(folder, tokens, note["keep"], note["signed"]) as entries:
        for block in blocks:
            check(0.4 + 0.5 * block.first / spool.n_features)
            for feature, rows, values in block.features():
                statistics.add(feature, values)
                entries.add(rows, values)
                if cofiring:
                    cofiring.add(feature, rows)
                peaks[feature, : len(rows)] = tokens.ids[rows[:TOP]]
    check(0.9)
    columns = statistics.columns | (cofiring.columns if cofiring else {}) | {"peaks": peaks}
    write_statistics(folder / "features.parquet", columns | dict(relations))
    check(1.0)


def _sorted(spool: Spool, n_tokens: int) -> tuple[Cofiring | None, Iterator[Block]]:
    if isinstance(spool, SparseSpool):
        chunks = SortedChunks(spool, spool.folder)
        return Cofiring(spool, chunks.counts.sum(0)), chunks.blocks()
    assert isinstance(spool, DenseSpool)
    return None, dense_blocks(spool, n_tokens)
