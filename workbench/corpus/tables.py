"""The texts in a column of a table: CSV, TSV, Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.delimited import Table, read_table
from workbench.core.parquet import FOLDS, PageError, room_for, unfolded_size
from workbench.core.type_words import shown
from workbench.corpus.saving import CorpusError

COLUMN = "text"
"""The column of the texts in the corpora that Workbench writes."""

ROW, ROWS = 50, 10_000
"""Bytes that a row counts beside its text, and rows that are read at once."""
NAMED, LONGEST_NAME = 8, 40
"""Columns that a sentence names, and characters of a name in it."""


@dataclass(frozen=True)
class Wanted:
    """Which texts of a file are read."""

    column: str | None = None
    """Their column or field; None for `text`, and for one that a table alone can have."""
    delimiter: str | None = None
    """Of CSV; None finds it."""
    alone: bool = True
    """Whether the file itself was named, and not a folder with others."""

    @property
    def name(self) -> str:
        """The column, where none is looked for."""
        return COLUMN if self.column is None else self.column


def read_delimited(file: Path, wanted: Wanted) -> tuple[list[str], str]:
    """The texts of a CSV or TSV file, and their column."""
    table = read_table(file, CorpusError, wanted.delimiter)
    if not table.names:
        return [], wanted.name
    at = _place(file, table, wanted)
    return [row[at] for row in table.rows], table.names[at]


def _place(file: Path, table: Table, wanted: Wanted) -> int:
    """The number of the column with the texts."""
    found = [at for at, name in enumerate(table.names) if name == wanted.name]
    if not found and wanted.column is None:
        found = [at for at, name in enumerate(table.names) if name.lower() == COLUMN]
    if not found and wanted.column is None and wanted.alone:
        wordy = [at for at in range(len(table.names)) if any(_is_wordy(row[at]) for row in table.rows)]
        found = wordy if len(wordy) == 1 and not _is_wordy(table.names[wordy[0]]) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(f"{file} has {len(found)} columns {shown(table.names[found[0]])}; name each another way.")
    raise CorpusError(f"{no_column(file, wanted.name, table.names)}; name it in the first line, or with column=.")


def _is_wordy(field: str) -> bool:
    """Whether a field holds several words."""
    return sum(any(sign.isalpha() for sign in word) for word in field.split()) > 1


def read_parquet(file: Path, wanted: Wanted) -> tuple[list[str], str]:
    """The texts of a Parquet file, and their column; a missing value is an empty text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        if names.count(wanted.name) > 1:
            raise CorpusError(
                f"{file} has {names.count(wanted.name)} columns {shown(wanted.name)}; name each another way."
            )
        if wanted.name not in names:
            raise CorpusError(f"{no_column(file, wanted.name, names)}; name one with column=.")
        kind = pq.read_schema(file).field(wanted.name).type
        if not _is_text(kind):
            raise CorpusError(f"The column {wanted.name!r} of {file} holds {kind}, not text.")
        return list(_texts(file, wanted.name)), wanted.name
    except (pa.ArrowException, PageError) as error:
        raise CorpusError(f"{file} is not a whole Parquet file ({str(error).splitlines()[0].rstrip('.')}).") from error


def _texts(file: Path, column: str) -> Iterator[str]:
    """The texts in a column, some rows at a time.

    Raises:
        CorpusError: they take more room than the size of the file makes likely.
    """
    import pyarrow.parquet as pq

    room = room_for(file.stat().st_size)
    with pq.ParquetFile(file, read_dictionary=[column]) as opened, file.open("rb") as pages:
        about = opened.metadata
        stated = unfolded_size(pages, about, [column])
        if stated + ROW * about.num_rows <= room:
            for batch in opened.iter_batches(ROWS, columns=[column]):
                room -= _unfolded(batch.column(0))
                if room < 0:
                    break
                yield from (text or "" for text in batch.column(0).to_pylist())
            else:
                return
    raise CorpusError(
        f"{file} unfolds to more than {FOLDS} times its size, which no texts do; write it again without what repeats."
    )


def _unfolded(values: Any) -> int:
    """Bytes that texts take, those counted each time that stand in a dictionary once."""
    import pyarrow as pa
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    if isinstance(values, pa.DictionaryArray):
        lengths = compute.take(compute.binary_length(values.dictionary), values.indices)
    else:
        lengths = compute.binary_length(values)
    return (compute.sum(lengths).as_py() or 0) + ROW * len(values)


def _is_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds texts, plain or as a dictionary of those that differ."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def no_column(file: Path | str, column: str, names: Sequence[str], what: str = "column") -> str:
    """The beginning of a sentence on a column that is not there."""
    names = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in names]
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED:,} more"]
    return f"{file} has no {what} {shown(column)}; it has {', '.join(names) or 'none'}"
