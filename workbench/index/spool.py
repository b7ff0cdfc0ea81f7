"""Codes in the order of the corpus, in files that grow during a build: one set for each dictionary.

Values are float16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from workbench.dictionaries.codes import Codes
from workbench.index.append_files import AppendFiles
from workbench.index.layout import FeatureIndexError, mapped

CHUNK = 1 << 21
"""Entries in memory at a time."""


def feature_type(n_features: int) -> np.dtype:
    """The smallest type that holds every feature's number."""
    return np.dtype(np.uint16 if n_features <= 1 << 16 else np.int32)


def descending(values: np.ndarray) -> np.ndarray:
    """float16 values as whole numbers `[n]` uint16 that sort in the opposite order, so that a radix sort takes them."""
    bits = (values + np.float16(0)).view(np.uint16)  # -0 becomes 0
    return np.where(bits & 0x8000, bits, ~(bits | 0x8000))


class Spool(ABC):
    """Codes of consecutive tokens.

    Args:
        folder: the folder of its files.
        n_features: size of the dictionary.
    """

    names: Sequence[str]
    """Its files, in the order of `sizes`."""

    def __init__(self, folder: Path, n_features: int):
        self.folder = folder
        self.n_features = n_features
        self.files: AppendFiles | None = None

    @abstractmethod
    def sizes(self, tokens: int) -> list[int]:
        """Bytes of each file that the first `tokens` tokens take."""

    @abstractmethod
    def append(self, codes: Codes) -> None:
        """Append the codes of the next tokens, `[n, k]`."""

    def open(self, tokens: int) -> AppendFiles:
        """Open for appending behind the first `tokens` tokens; bytes behind them are cut off."""
        sizes = self.sizes(tokens) if tokens else [0] * len(self.names)
        self.files = AppendFiles(self.folder, dict(zip(self.names, sizes, strict=True)))
        return self.files

    def _add(self, *arrays: np.ndarray) -> None:
        assert self.files is not None, "the spool is not open"
        for name, array in zip(self.names, arrays, strict=True):
            self.files.add(name, array)


def _halved(codes: Codes) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = codes.values.detach().cpu().numpy().astype(np.float16)
    if not np.isfinite(values).all():
        raise FeatureIndexError("A value is not a number, or is above 65,504, the largest that an index can hold.")
    return values


class SparseSpool(Spool):
    """The features that are present at each token, and their values."""

    names = ("features.bin", "values.bin", "lengths.bin")

    @property
    def _type(self) -> np.dtype:
        return feature_type(self.n_features)

    def sizes(self, tokens: int) -> list[int]:
        lengths = np.fromfile(self.folder / "lengths.bin", np.int32, tokens)
        entries = int(lengths.sum(dtype=np.int64)) if len(lengths) == tokens else 1 << 62
        return [entries * self._type.itemsize, entries * 2, tokens * 4]

    def append(self, codes: Codes) -> None:
        values = _halved(codes)
        present = values != 0
        features = codes.indices.cpu().numpy()[present].astype(self._type)
        self._add(features, values[present], present.sum(1, dtype=np.int32))

    def by_token(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features and values `[entries]`, sorted by token, and each token's first entry `[tokens + 1]`."""
        lengths = mapped(self.folder / "lengths.bin", np.int32, -1)
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        n = int(starts[-1])
        features, values = (
            np.asarray(mapped(self.folder / name, kind, n))
            for name, kind in (("features.bin", self._type), ("values.bin", np.float16))
        )
        return features, values, starts


class DenseSpool(Spool):
    """Every feature's value at every token, each part `[n_features, n]`, so that a feature's values lie together."""

    names = ("dense.bin", "parts.bin")

    def sizes(self, tokens: int) -> list[int]:
        parts = np.fromfile(self.folder / "parts.bin", np.int32).cumsum(dtype=np.int64)
        which = int(np.searchsorted(parts, tokens))
        if which == len(parts) or parts[which] != tokens:
            return [1 << 62, 0]
        return [tokens * self.n_features * 2, (which + 1) * 4]

    def append(self, codes: Codes) -> None:
        values = _halved(codes)
        self._add(values.T, np.array([len(values)], np.int32))

    def columns(self, n_tokens: int, block: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
        """Groups of neighbouring features with all their values: the first one's number, and `[features, n_tokens]`."""
        parts = np.fromfile(self.folder / "parts.bin", np.int32).tolist()
        whole = mapped(self.folder / "dense.bin", np.float16, n_tokens * self.n_features)
        bounds = np.cumsum([0, *parts])
        views = [
            whole[bounds[i] * self.n_features : bounds[i + 1] * self.n_features].reshape(self.n_features, part)
            for i, part in enumerate(parts)
        ]
        step = max(block // max(n_tokens, 1), 1)
        for first in range(0, self.n_features, step):
            yield first, np.concatenate([view[first : first + step] for view in views], axis=1)
