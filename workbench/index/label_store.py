"""Labels that were found and not written by a person, in a file beside the index: `labels.parquet`.

The file holds a row for each label, the hash of the dictionary, and a checksum of the rows. Building never changes it,
and writing replaces it as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.files import replacing
from workbench.core.hashing import hash_of
from workbench.core.locks import alone
from workbench.core.parquet import read_whole
from workbench.core.paths import has_halves
from workbench.core.type_words import reason_of
from workbench.index.feature_label import FeatureLabel
from workbench.index.layout import FeatureIndexError

FILE = "labels.parquet"
SCHEMA = pa.schema(
    [("feature", pa.int32())]
    + [(name, pa.string()) for name in ("text", "source", "kind", "rule")]
    + [(name, pa.float64()) for name in ("score", "low", "high", "every")]
)
FIELDS = tuple(SCHEMA.names[1:])
Labels = Mapping[int, Sequence[FeatureLabel]]
"""By feature, its labels, the best first."""


def check_label(label: FeatureLabel, what: str) -> None:
    """Raise `FeatureIndexError` where a label says nothing, or its scores are no areas; `what` begins the sentence."""
    texts = (label.text, label.source, label.kind, label.rule)
    if any(not isinstance(one, str) or has_halves(one) for one in texts) or not (label.text.strip() and label.source):
        raise FeatureIndexError(f"{what} without a text and a source; give both.")
    for one in (label.score, label.low, label.high, label.every):
        if one is not None and not 0 <= one <= 1:
            raise FeatureIndexError(f"{what} with the number {one}; scores are None or from 0 to 1.")


class LabelStore:
    """The found labels of an index.

    Args:
        folder: of the index.
        known: hashes by which the file may mean the dictionary, the present one first.
        n_features: size of the dictionary.

    Raises:
        FeatureIndexError: the file is damaged, or about another dictionary.
    """

    def __init__(self, folder: Path, known: Sequence[str], n_features: int):
        self.folder, self.file, self.known, self.n_features = folder, folder / FILE, list(known), n_features
        self._seen: tuple[int, int, int] | None = None
        self._labels: dict[int, list[FeatureLabel]] = {}
        self.all()

    def all(self) -> Labels:
        """Every label by feature; one with a higher score comes first, those without one last."""
        try:
            if not self.file.exists():
                self._seen, self._labels = None, {}
                return self._labels
            about = self.file.stat()
            seen = (about.st_ino, about.st_size, about.st_mtime_ns)
            if seen != self._seen:
                self._labels, self._seen = self._read(self.file.read_bytes()), seen
        except OSError as error:
            raise FeatureIndexError(f"{self.file} can't be read: {reason_of(error)}.") from error
        return self._labels

    def replace(self, source: str, labels: Mapping[int, FeatureLabel]) -> None:
        """Replace the labels of one source by others; those of other sources stay.

        Raises:
            FeatureIndexError: another process writes the index, or the file can't be written.
        """
        with alone(self.folder, FeatureIndexError):
            rows = [
                (feature, one) for feature, every in self.all().items() for one in every if one.source != source
            ] + [(feature, one) for feature, one in labels.items()]
            rows.sort(key=lambda row: (row[0], row[1].source))
            columns: dict[str, list[Any]] = {"feature": [feature for feature, _ in rows]}
            columns |= {name: [getattr(one, name) for _, one in rows] for name in FIELDS}
            about = {"format": "1", "dictionary": self.known[0], "sha256": hash_of(columns)}
            table = pa.table(columns, SCHEMA).replace_schema_metadata(about)
            with replacing(self.file, FeatureIndexError, owned=True) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        self._seen = None

    def _read(self, content: bytes) -> dict[int, list[FeatureLabel]]:
        table = read_whole(content, str(self.file), FeatureIndexError)
        about = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        columns = table.to_pydict() if table.schema.equals(SCHEMA) else {}
        if not columns or about.get("format") != "1" or about.get("sha256") != hash_of(columns):
            raise FeatureIndexError(f"{self.file} is no file of labels, or was altered; remove it and explain anew.")
        if about.get("dictionary") not in self.known:
            raise FeatureIndexError(
                f"{self.file} holds labels for another dictionary ({about.get('dictionary', '')[:12]}, not "
                f"{self.known[0][:12]}); move it away."
            )
        labels: dict[int, list[FeatureLabel]] = {}
        for number, feature in enumerate(columns["feature"]):
            if feature is None or not 0 <= feature < self.n_features:
                raise FeatureIndexError(f"{self.file} has a label of feature {feature}, which there is not.")
            label = FeatureLabel(**{name: columns[name][number] for name in FIELDS})
            check_label(label, f"{self.file} has a label of feature {feature:,}")
            labels.setdefault(feature, []).append(label)
        for every in labels.values():
            every.sort(key=lambda one: -1.0 if one.score is None else one.score, reverse=True)
        return labels
