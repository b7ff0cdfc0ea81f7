"""The entries of a feature that an index keeps, and those that its card shows as examples.

A feature's entries are sorted by their values, highest first; the rank of an entry is its place there. The choice
follows from the number of entries alone, so that writer and reader agree without a record on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP = 20
"""Examples with the highest values."""
LOWEST = 10
"""Examples with the lowest values, of features that have negative ones."""
BANDS = 4
"""Parts of equal size into which the ranks are cut for examples from lower quantiles."""
PER_BAND = 4
LEAST_KEPT = 3 * TOP
"""The least number of entries that may be kept per feature."""
BEFORE, AFTER = 20, 10
"""Tokens shown before and after an example's peak."""


@dataclass(frozen=True)
class Kept:
    """The kept entries of a feature that has `count`.

    Up to `keep` entries, all are kept. Otherwise half of `keep` are the highest and half are evenly spaced ranks of the
    rest; where values can be negative, a third each are the highest, the lowest, and evenly spaced ranks between them.
    """

    count: int
    head: int
    """Number of highest entries, kept without a gap."""
    middle: int
    """Number of evenly spaced entries behind them."""
    tail: int
    """Number of lowest entries, kept without a gap."""

    @property
    def complete(self) -> bool:
        """Whether every entry is kept."""
        return len(self) == self.count

    def __len__(self) -> int:
        return self.head + self.middle + self.tail

    @property
    def weight(self) -> float:
        """Number of entries that each of the middle ones represents."""
        return (self.count - self.head - self.tail) / max(self.middle, 1)

    def ranks(self) -> np.ndarray:
        """Ranks of the kept entries, `[kept]`, ascending."""
        spaced = self.head + ((np.arange(self.middle) + 0.5) * self.weight).astype(np.int64)
        return np.concatenate([np.arange(self.head), spaced, np.arange(self.count - self.tail, self.count)])


def kept(count: int, keep: int | None, signed: bool) -> Kept:
    """The kept entries of a feature with `count` entries; all where `keep` is None."""
    if keep is None or count <= keep:
        return Kept(count, count, 0, 0)
    tail = keep // 3 if signed else 0
    head = tail or -(-keep // 2)
    return Kept(count, head, keep - head - tail, tail)


@dataclass(frozen=True)
class Shown:
    """Places, among the kept entries, of the examples on a feature's card."""

    top: np.ndarray
    """The highest, best first."""
    bands: list[np.ndarray]
    """From each quarter of the ranks, highest first, without those in `top`."""
    lowest: np.ndarray
    """The lowest, lowest first."""

    def all(self) -> np.ndarray:
        """All of them, `[examples]`."""
        return np.concatenate([self.top, *self.bands, self.lowest])


def shown(entries: Kept, signed: bool) -> Shown:
    """Places of a card's examples among the kept entries."""
    if len(entries) == 0:
        return Shown(np.arange(0), [np.arange(0)] * BANDS, np.arange(0))
    top = min(TOP, len(entries))
    lowest = np.arange(len(entries) - 1, max(top, len(entries) - LOWEST) - 1, -1) if signed else np.arange(0)
    share = (np.arange(BANDS * PER_BAND) + 0.5) / (BANDS * PER_BAND)
    wanted = (share * entries.count).astype(np.int64)  # ranks
    if not entries.complete:
        wanted = np.searchsorted(entries.ranks(), wanted).clip(max=len(entries) - 1)
    bands = [np.unique(band) for band in wanted.reshape(BANDS, PER_BAND)]
    return Shown(np.arange(top), [band[band >= top] for band in bands], lowest)
