"""Which entries are kept and shown, and the external sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from index_models import ordered

from workbench.dictionaries.codes import Codes
from workbench.index.selection import BANDS, LEAST_KEPT, LOWEST, TOP, kept, shown
from workbench.index.sorting import SortedChunks, dense_blocks
from workbench.index.spool import DenseSpool, SparseSpool


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 59, 60, 61, 62, 100, 999, 12345])
def test_what_is_kept(count: int, signed: bool) -> None:
    for keep in (None, LEAST_KEPT, 61, 128, 5000):
        what = kept(count, keep, signed)
        ranks = what.ranks()
        assert len(ranks) == len(what) == (count if keep is None else min(count, keep))
        assert np.all(np.diff(ranks) > 0)
        assert len(ranks) == 0 or (ranks[0] >= 0 and ranks[-1] < count)
        places = shown(what, signed)
        assert len(places.bands) == BANDS
        assert np.all(places.all() < max(len(what), 1))
        assert len(places.lowest) == (min(max(count - TOP, 0), LOWEST) if signed else 0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_the_external_sort(tmp_path: Path, chunk: int) -> None:
    chance = np.random.default_rng(0)
    dense = np.round(chance.normal(size=(137, 11)), 1).astype(np.float16)  # rounded, so that there are ties
    dense[chance.random(dense.shape) < 0.6] = 0
    dense[:, 3] = 0
    dense[50:60] = 0
    full = torch.from_numpy(dense).float()
    every = torch.arange(11).expand(137, 11)
    sparse_spool, dense_spool = SparseSpool(tmp_path, 11), DenseSpool(tmp_path, 11)
    for spool in (sparse_spool, dense_spool):
        files = spool.open(0)
        for start in range(0, 137, 20):
            spool.append(Codes(full[start : start + 20], every[start : start + 20], 11))
        files.close()
    for blocks in (SortedChunks(sparse_spool, tmp_path, chunk).blocks(), dense_blocks(dense_spool, 137, chunk)):
        found = [(feature, rows, values) for block in blocks for feature, rows, values in block.features()]
        assert [feature for feature, _, _ in found] == list(range(11))
        for feature, rows, values in found:
            assert rows.tolist() == ordered(dense[:, feature]).tolist()
            assert np.array_equal(values, dense[rows, feature])
