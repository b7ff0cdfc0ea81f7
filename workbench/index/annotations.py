"""Labels, notes and stars of features, in an SQLite file of their own.

Each change is one transaction that has reached the disk when the call returns. The file records its dictionary's hash,
so that labels never end up on the latents of another dictionary.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from workbench.core.failures import explained
from workbench.core.type_words import reason_of
from workbench.index.label_files import Remark, read_labels, write_labels
from workbench.index.layout import FeatureIndexError

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS remarks (feature INTEGER PRIMARY KEY, label TEXT NOT NULL DEFAULT '', "
    "note TEXT NOT NULL DEFAULT '', starred INTEGER NOT NULL DEFAULT 0)",
)
"""Older files hold a table `words` besides, which triggers keep up to date and nothing reads."""


class Annotations:
    """Labels, notes and stars of the features of one dictionary.

    Args:
        file: the SQLite file; the first change creates it.
        dictionary: SHA-256 of the dictionary (of the model, for neurons).
        others: what other versions recorded in its place; empty ones are left out.

    Raises:
        FeatureIndexError: the file is damaged, or about another dictionary.
    """

    def __init__(self, file: Path, dictionary: str, *others: str):
        self.file = file
        self.dictionary = dictionary
        self.known = [hash for hash in (dictionary, *others) if hash]
        with self._reading() as connection:
            if connection is not None:
                self._compare(connection)

    def of(self, feature: int) -> Remark:
        """The remark on a feature."""
        with self._reading() as connection:
            if connection is None:
                return Remark()
            row = connection.execute("SELECT label, note, starred FROM remarks WHERE feature = ?", (feature,))
            label, note, starred = row.fetchone() or ("", "", 0)
        return Remark(label, note, bool(starred))

    def all(self) -> dict[int, Remark]:
        """Every feature that has a label, a note or a star."""
        with self._reading() as connection:
            rows = connection.execute("SELECT * FROM remarks ORDER BY feature").fetchall() if connection else []
        remarks = {feature: Remark(label, note, bool(starred)) for feature, label, note, starred in rows}
        return {feature: remark for feature, remark in remarks.items() if remark != Remark()}

    def change(self, changes: dict[int, dict[str, Any]]) -> None:
        """Set fields of `Remark` for some features, all or none of them."""
        with self._writing() as connection:
            for feature, fields in changes.items():
                connection.execute("INSERT OR IGNORE INTO remarks (feature) VALUES (?)", (feature,))
                for field, value in fields.items():
                    connection.execute(f"UPDATE remarks SET {field} = ? WHERE feature = ?", (value, feature))

    def save(self, path: Path, name: str, remarks: Mapping[int, Remark]) -> None:
        """Write remarks on the features of the dictionary to a JSON or CSV file."""
        write_labels(path, name, self.dictionary, remarks)

    def load(self, path: Path, n_features: int) -> int:
        """Add what `save` wrote, replacing the remarks on its features; returns their number.

        Raises:
            FeatureIndexError: a file that can't be read, of another form or dictionary, or with a feature that the
                index does not have.
        """
        new = read_labels(path, self.known)
        if new and max(new) >= n_features:
            raise FeatureIndexError(f"{path} is not a file of labels for this index: it has no feature {max(new):,}.")
        self.change(new)
        return len(new)

    def _compare(self, connection: sqlite3.Connection) -> None:
        """Raise `FeatureIndexError` where the file belongs to another dictionary."""
        about = dict(connection.execute("SELECT key, value FROM about"))
        if about.get("dictionary", self.dictionary) not in self.known:
            raise FeatureIndexError(
                f"{self.file} holds labels for another dictionary ({about['dictionary'][:12]}, not "
                f"{self.dictionary[:12]}); move it away, or build the index in another folder."
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection, or None where nothing is written yet.

        While the first change is written, and after a process was killed there, the file has no tables.
        """
        try:
            if not self.file.exists():
                yield None
                return
            with closing(sqlite3.connect(self.file, timeout=30)) as connection:
                (version,) = connection.execute("PRAGMA schema_version").fetchone()
                yield connection if version else None
        except (sqlite3.Error, OSError) as error:
            raise FeatureIndexError(f"{self.file} can't be used: {reason_of(error)}.") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with explained(self.file, FeatureIndexError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=30)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute("INSERT OR IGNORE INTO about VALUES ('dictionary', ?)", (self.dictionary,))
                    self._compare(connection)
                    yield connection
