"""Entries on disk: each feature's tokens and values, from its highest value down.

Two sets of memory-mapped arrays, each with offsets per feature (compressed sparse rows). `entries` holds the kept
entries in the order of the values. Where not all are kept, `around` holds each feature's activations in the windows
around the examples on its card, in the order of the tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.index.append_files import AppendFiles
from workbench.index.layout import mapped, write_array
from workbench.index.selection import BANDS, Kept, Shown, kept, shown
from workbench.index.tokens import TokenTable


class EntriesWriter:
    """Writes the entries of one feature after another; a context manager.

    Args:
        folder: the folder of the files.
        tokens: the token table of the same index.
        keep: entries kept per feature; None for all.
        signed: whether values can be negative.
    """

    def __init__(self, folder: Path, tokens: TokenTable, keep: int | None, signed: bool):
        self.tokens, self.keep, self.signed = tokens, keep, signed
        self._sets = {name: _Rows(folder, name) for name in ("entries", "around")}
        self._wanted = np.zeros(len(tokens), bool)

    def __enter__(self) -> EntriesWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        for one in self._sets.values():
            one.close()

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write the next feature, from all its entries `[count]`, highest value first."""
        what = kept(len(rows), self.keep, self.signed)
        if what.complete:
            self._sets["entries"].add(rows, values)
            self._sets["around"].add(rows[:0], values[:0])
            return
        ranks = what.ranks()
        kept_rows = rows[ranks]
        self._sets["entries"].add(kept_rows, values[ranks])
        examples = kept_rows[shown(what, self.signed).all()]
        windows = [slice(*pair) for pair in zip(*self.tokens.windows(examples), strict=True)]
        for window in windows:
            self._wanted[window] = True
        near = np.flatnonzero(self._wanted[rows])
        for window in windows:
            self._wanted[window] = False
        near = near[np.argsort(rows[near])]
        self._sets["around"].add(rows[near], values[near])

    def add_examples(self, peaks: np.ndarray, heights: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
        """Write the next feature, of which some examples are known and nothing else.

        Args:
            peaks: the row of each example's peak `[n]`, the highest value first.
            heights: the values there `[n]`.
            rows: every row of an example whose value is not 0, `[count]`.
            values: the values there `[count]`.
        """
        self._sets["entries"].add(peaks, heights)
        self._sets["around"].add(rows, values)


class _Rows:
    """Three files: rows, values, and offsets; closing writes the offsets."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self._files = AppendFiles(folder, {f"{name}.rows.bin": 0, f"{name}.values.bin": 0})
        self._counts = [0]

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._files.add(f"{self.name}.rows.bin", rows.astype(np.int32, copy=False))
        self._files.add(f"{self.name}.values.bin", values.astype(np.float16, copy=False))
        self._counts.append(len(rows))

    def close(self) -> None:
        self._files.close()
        write_array(self.folder / f"{self.name}.offsets.bin", np.cumsum(self._counts, dtype=np.int64))


class Entries:
    """The entries of a finished index.

    Args:
        folder: `data/` of an index.
        n_tokens: size of its token table.
        counts: number of entries of each feature before any was left out, `[n_features]`; None for those of
            `add_examples`, of which each is the peak of an example that somebody chose.
        keep, signed: as in `EntriesWriter`.

    Attributes:
        chosen: whether `counts` is None.
        rows: `[kept entries]`, token positions.
        values: `[kept entries]` float16.
        offsets: `[n_features + 1]`, the first entry of each feature.
    """

    def __init__(self, folder: Path, n_tokens: int, counts: np.ndarray | None, keep: int | None, signed: bool):
        self.n_tokens, self.keep, self.signed = n_tokens, keep, signed
        self.rows, self.values, self.offsets = _read(folder, "entries")
        self._around = _read(folder, "around")
        self.chosen = counts is None
        self.counts = np.diff(self.offsets) if counts is None else counts

    def kept(self, feature: int) -> Kept:
        """Ranks of a feature's entries that are kept."""
        return kept(int(self.counts[feature]), self.keep, self.signed)

    def shown(self, feature: int) -> Shown:
        """Places of a card's examples among the kept entries: of chosen ones all, which tell nothing of quantiles."""
        entries = self.kept(feature)
        if self.chosen:
            return Shown(np.arange(len(entries)), [np.arange(0)] * BANDS, np.arange(0))
        return shown(entries, self.signed)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of a feature's entries, highest value first; views of the mapped files."""
        here = slice(int(self.offsets[feature]), int(self.offsets[feature + 1]))
        return self.rows[here], self.values[here]

    def at(self, feature: int, rows: np.ndarray) -> np.ndarray:
        """A feature's values at rows `[n]`, float32; 0 where it has no entry."""
        known_rows, known_values = self.of(feature)
        if self.chosen or not self.kept(feature).complete:
            there_rows, there_values, offsets = self._around
            here = slice(int(offsets[feature]), int(offsets[feature + 1]))
            known_rows = np.concatenate([known_rows, there_rows[here]])
            known_values = np.concatenate([known_values, there_values[here]])
        wanted, back = np.unique(rows, return_inverse=True)
        mask = np.zeros(self.n_tokens, bool)
        mask[wanted] = True
        hits = np.flatnonzero(mask[known_rows])
        values = np.zeros(len(wanted), np.float32)
        values[np.searchsorted(wanted, known_rows[hits])] = known_values[hits]
        return values[back]


def _read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offsets = np.fromfile(folder / f"{name}.offsets.bin", np.int64)
    n = int(offsets[-1])
    rows = mapped(folder / f"{name}.rows.bin", np.int32, n)
    return np.asarray(rows), np.asarray(mapped(folder / f"{name}.values.bin", np.float16, n)), offsets
