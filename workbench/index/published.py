"""The labels that an export holds, in a table of the index that was made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.parquet import read_whole
from workbench.index.exported import ExportedLabel, FeatureExport
from workbench.index.label_files import Remark
from workbench.index.layout import FeatureIndexError

FILE = "labels.parquet"
Published = Mapping[int, list[ExportedLabel]]
"""By feature, the labels of an export; empty for an index of a corpus."""


def write_published(folder: Path, export: FeatureExport) -> None:
    """Write the labels of an export."""
    rows = [(number, one.text, one.source) for number, it in sorted(export.features.items()) for one in it.labels]
    features, texts, sources = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"feature": pa.array(features, pa.int32())}
    columns |= {name: pa.array(column, pa.string()) for name, column in (("text", texts), ("source", sources))}
    pq.write_table(pa.table(columns), folder / FILE, compression="zstd")


def read_published(folder: Path) -> Published:
    """The labels that `write_published` wrote."""
    table = read_whole((folder / FILE).read_bytes(), str(folder / FILE), FeatureIndexError)
    labels: dict[int, list[ExportedLabel]] = {}
    for feature, text, source in zip(*(table[name].to_pylist() for name in ("feature", "text", "source")), strict=True):
        labels.setdefault(feature, []).append(ExportedLabel(text, source))
    return labels


def with_published(own: dict[int, Remark], published: Published) -> dict[int, Remark]:
    """Remarks in which a feature without a label of one's own has the first one of the export."""
    every = dict(own)
    for feature, labels in published.items():
        remark = own.get(feature, Remark())
        every[feature] = remark if remark.label else replace(remark, label=labels[0].text)
    return dict(sorted(every.items()))
