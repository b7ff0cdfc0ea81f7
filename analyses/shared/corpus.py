"""The bundled corpus with the kind of each text."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

STORIES = Path(__file__).resolve().parents[2] / "data" / "corpora" / "stories.parquet"


def texts_and_kinds() -> tuple[list[str], list[str]]:
    """All bundled texts, and of each its kind, such as `letter` or `code`."""
    rows = pq.read_table(STORIES, columns=["text", "kind"]).to_pydict()
    return rows["text"], rows["kind"]
