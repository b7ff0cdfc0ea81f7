"""Statistics of features, in Parquet: frequency and strength of activations, and relations to other features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.parquet import read_whole
from workbench.index.layout import FeatureIndexError

BINS = 32
"""Of a histogram: equal widths from the lowest value, or 0 if none is negative, to the highest, or 0."""


class ValueStatistics:
    """Statistics of the values of one feature after another.

    Args:
        n_features: size of the dictionary.
        n_tokens: tokens seen.
    """

    def __init__(self, n_features: int, n_tokens: int):
        self.columns = {
            "active": np.zeros(n_features, np.int64),
            "density": np.zeros(n_features, np.float64),
            "mean": np.zeros(n_features, np.float32),
            "highest": np.zeros(n_features, np.float32),
            "lowest": np.zeros(n_features, np.float32),
            "histogram": np.zeros((n_features, BINS), np.int32),
        }
        self._n_tokens = n_tokens

    def add(self, feature: int, values: np.ndarray) -> None:
        """Fill the columns of a feature from all its values `[count]` float16, highest first."""
        columns = self.columns
        columns["active"][feature] = len(values)
        columns["density"][feature] = len(values) / self._n_tokens
        if len(values) == 0:
            return
        columns["mean"][feature] = values.mean(dtype=np.float64)
        columns["highest"][feature], columns["lowest"][feature] = values[0], values[-1]
        edges = histogram_edges(float(values[-1]), float(values[0]))
        inner = np.searchsorted(values[::-1].astype(np.float64), edges[1:-1], "left")
        columns["histogram"][feature] = np.diff(np.concatenate([[0], inner, [len(values)]]))


def histogram_edges(lowest: float, highest: float) -> np.ndarray:
    """Edges of a histogram's bins, `[BINS + 1]`."""
    return np.linspace(min(lowest, 0.0), max(highest, 0.0), BINS + 1)


def write_statistics(file: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns `[n_features]` or `[n_features, n]` as Parquet."""
    arrays = {
        name: pa.array(column)
        if column.ndim == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(column).ravel()), column.shape[1])
        for name, column in columns.items()
    }
    pq.write_table(pa.table(arrays), file, compression="zstd")


def read_statistics(file: Path) -> dict[str, np.ndarray]:
    """The columns that `write_statistics` wrote."""
    columns = {}
    table = read_whole(file.read_bytes(), str(file), FeatureIndexError)
    for name, column in zip(table.column_names, table.columns, strict=True):
        whole = column.combine_chunks()
        if isinstance(whole, pa.FixedSizeListArray):
            columns[name] = whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)
        else:
            columns[name] = whole.to_numpy()
    return columns
