"""Tables in text files (CSV, TSV). Every row has as many fields as the first line has names, or the table is refused.

Fields stand in double quotes where they hold delimiters, line breaks or quotes, which are doubled inside (RFC 4180).
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.text_files import read_utf8
from workbench.core.type_words import shown

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""What is tried where no delimiter is named."""
ENDINGS = (".csv", ".tsv")
"""Of the names of tables; a `.tsv` file has tabs."""
LONGEST_FIELD = 2**31 - 1
"""Characters of a field; Python's own limit of 131,072 is for the whole process and is raised to this."""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    names: tuple[str, ...]
    """Of the columns, without blanks around them; a column without a name has an empty one."""
    rows: list[list[str]]
    """The fields of each row that is not blank."""
    lines: list[int]
    """The line on which each row ends, from 1."""


def check_delimiter(delimiter: str | None, error: type[WorkbenchError]) -> None:
    """Refuse what can't part fields: more than one character, a quote, a character that does not print, but for tab."""
    if delimiter is None or delimiter == "\t":
        return
    if len(delimiter) != 1 or delimiter == '"' or not delimiter.isprintable():
        raise error(f"delimiter is one character such as ';' or a tab, and no quote, not {shown(delimiter)}.")


def read_table(file: Path, error: type[WorkbenchError], delimiter: str | None = None) -> Table:
    """The table in a file.

    Args:
        file: UTF-8, with or without a byte order mark.
        error: the room's own error.
        delimiter: as `check_delimiter` allows; None takes tabs in a `.tsv` file, what a first line `sep=;` names, or
            the one of `DELIMITERS` that the line of names holds and with which every row has as many fields.

    Raises:
        WorkbenchError: of the given kind: the file can't be read, is not UTF-8, has rows of unequal length or open
            quotes, or its delimiter can't be told.
    """
    text = read_utf8(file, error)
    if named := re.match(r"sep=(.)\r?\n", text):
        text = text[named.end() - 1 :]  # its line break stays, so that lines are counted from the first
        delimiter = delimiter or named[1]
    if delimiter is None and file.suffix.lower() == ".tsv":
        delimiter = "\t"
    tried = [delimiter] if delimiter else [one for one in DELIMITERS if len(_first_row(text, one)) > 1] or [","]
    tables = {one: _table(text, one) for one in tried}
    fitting = [one for one in tables.values() if isinstance(one, Table)]
    if len(fitting) > 1:
        words = " and ".join(DELIMITERS[one] for one, table in tables.items() if isinstance(table, Table))
        raise error(f"The delimiter of {file} can't be told, since {words} fit; name it with delimiter=.")
    if not fitting:
        raise error(f"{file} is no table: {next(iter(tables.values()))}.")
    return fitting[0]


def _table(text: str, delimiter: str) -> Table | str:
    """The table, or what is wrong with it, to stand in a sentence.

    In files with tabs quotes may be plain characters, as IANA defines these files.
    """
    quoted = _parsed(text, delimiter, csv.QUOTE_MINIMAL)
    if delimiter != "\t" or '"' not in text:
        return quoted
    plain = _parsed(text, delimiter, csv.QUOTE_NONE)
    if isinstance(quoted, str):
        return quoted if isinstance(plain, str) else plain
    if isinstance(plain, Table) and len(plain.names) > 1 and len(plain.rows) != len(quoted.rows):
        return "its quotes can be read as plain characters or around line breaks; save it with commas"
    return quoted


def _parsed(text: str, delimiter: str, quoting: int) -> Table | str:
    names: tuple[str, ...] = ()
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = _reader(text, delimiter, quoting=quoting, strict=True)
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if not names:
                names = tuple(field.strip() for field in row)
            elif len(row) != len(names):
                columns = f"{len(names)} column{'s' if len(names) > 1 else ''}"
                return (
                    f"line {reader.line_num:,} has {len(row)} field{'s' if len(row) > 1 else ''} where the first names "
                    f"{columns}; put fields with delimiters or line breaks into double quotes, or name another "
                    "delimiter"
                )
            else:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as wrong:
        return f"a quote before line {reader.line_num + 1:,} is not closed, or not doubled inside a field ({wrong})"
    return Table(names, rows, lines)


def _first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next((row for row in _reader(text, delimiter) if any(field.strip() for field in row)), [])
    except csv.Error:
        return []


def _reader(text: str, delimiter: str, **how: Any) -> Any:
    if csv.field_size_limit() < LONGEST_FIELD:
        csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **how)
