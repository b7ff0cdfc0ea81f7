"""Search by word in the tokens that features promote and those that they are most active on: SQLite with FTS5."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

_COLUMNS = ("activating", "promoted")


def write_words(file: Path, documents: Iterable[tuple[int, str, str]]) -> None:
    """Write the search file.

    Args:
        file: the file to write.
        documents: for each feature its number, the tokens that it is most active on, and those that it promotes, as
            texts.
    """
    with closing(sqlite3.connect(file)) as connection, connection:
        # the words only: the tokens themselves are in the other files
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(activating, promoted, content='', detail=column)")
        connection.executemany("INSERT INTO words (rowid, activating, promoted) VALUES (?, ?, ?)", documents)
        connection.execute("INSERT INTO words (words) VALUES ('optimize')")


def query_of(text: str, *, prefix: bool) -> str:
    """An FTS5 query for all words of a text; empty if there are none."""
    words = re.findall(r"\w+", text.replace("_", " "))
    return " AND ".join(f'"{word}"' + ("*" if prefix else "") for word in words)


def search_words(file: Path, text: str) -> list[tuple[int, str]]:
    """Features with all words of `text` among their tokens, best first, each with the column that contains them.

    Whole words rank before beginnings of words, and within these, tokens that a feature is active on before tokens that
    it promotes; within that, the order is by BM25.
    """
    matches: dict[int, str] = {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        for prefix in (False, True):
            query = query_of(text, prefix=prefix)
            for column in _COLUMNS if query else ():
                hits = connection.execute(
                    "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank", (f"{column} : ({query})",)
                )
                for (feature,) in hits:
                    matches.setdefault(feature, column)
    return list(matches.items())
