"""Corpora on disk: texts in a `.parquet` or `.jsonl` file, with a note of their source, licence and hash.

Parquet holds the note in its metadata. The note of `NAME.jsonl` is in `NAME.jsonl.about.json`, which no file of a
user's is called. While the texts are replaced it holds the note of the old ones too: whenever the process is killed,
the texts that are there have a note of their own hash. Older versions wrote `NAME.json` beside both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing
from workbench.core.forms import parse_json, read_json
from workbench.core.locks import in_turn
from workbench.core.replacement import check_place, form_of

NOTE = "workbench"
"""Key of the note in the metadata of Parquet."""
FORMAT = "workbench corpus"
"""Key that marks a file with the note of a `.jsonl` file; its value is the version."""
BEFORE = "before"
"""Key of the note of the texts that are replaced."""


class CorpusError(WorkbenchError):
    """A corpus that can't be found, read, written or cut into tokens."""


def texts_hash(texts: Iterable[str]) -> str:
    """SHA-256 over texts and their order, in hex."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def write_corpus(path: Path, texts: Sequence[str], note: Mapping[str, Any]) -> None:
    """Write texts and their note.

    Raises:
        CorpusError: a file of another kind, or one that can't be written or holds something else than a corpus.
    """
    if path.suffix.lower() == ".parquet":
        _write_parquet(path, texts, note)
    elif path.suffix.lower() == ".jsonl":
        _write_jsonl(path, texts, note)
    else:
        raise CorpusError(f"A corpus is saved as .parquet or .jsonl, not as {path.name}.")


def read_note(path: Path, texts: Iterable[str] | None = None) -> dict[str, Any]:
    """The note of the texts in a file or folder; empty where there is none.

    Args:
        path: of the texts.
        texts: all of them, to compare with the hash in the note; None where another column was read.

    Raises:
        CorpusError: the note has the hash of other texts.
    """
    return _note_of(path, None if texts is None else lambda: texts_hash(texts))


def _note_of(path: Path, hashed: Callable[[], str] | None) -> dict[str, Any]:
    """The note of the texts that have this hash; None stands for any texts. Errors as in `read_note`."""
    about = _about(path)
    note = _parquet_note(path) or _json(about) or _json(path.with_suffix(".json"))
    before = note.pop(BEFORE, None)
    note.pop(FORMAT, None)
    recorded = note.get("hash")
    if hashed is None or not isinstance(recorded, str) or len(recorded) != 64:
        return note
    found = hashed()
    if isinstance(before, dict) and before.get("hash") == found:
        return before
    if found != recorded:
        beside = about if about.exists() else path.with_suffix(".json")
        where = path if path.suffix.lower() == ".parquet" and _parquet_note(path) else beside
        raise CorpusError(
            f"{where} records the hash of other texts ({recorded[:12]}) than {path} holds ({found[:12]}); copy or save "
            "the corpus again, or delete the note."
        )
    return note


def _write_parquet(path: Path, texts: Sequence[str], note: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": pa.array(texts, pa.string())}, metadata={NOTE: json.dumps(note, ensure_ascii=False)})
    with replacing(path, CorpusError) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        with in_turn(path.absolute().parent, CorpusError):
            check_place(path, temporary, CorpusError)
            _earlier(path, _parquet_rows)


def _write_jsonl(path: Path, texts: Sequence[str], note: Mapping[str, Any]) -> None:
    own = {FORMAT: 1, **note}
    with ExitStack() as turn:
        with replacing(path, CorpusError, owned=True) as temporary:  # which is checked below
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
            temporary.write_text("".join(lines), encoding="utf-8")
            turn.enter_context(in_turn(path.absolute().parent, CorpusError))  # until both files have their places
            check_place(path, temporary, CorpusError)
            _write_about(_about(path), own | {BEFORE: _earlier(path, _jsonl_rows)})
        _write_about(_about(path), own)


def _write_about(path: Path, content: Mapping[str, Any]) -> None:
    if path.is_file() and path.stat().st_size and FORMAT not in _json(path):
        raise CorpusError(f"{path} is there already and is no note of a corpus; choose another name.")
    with replacing(path, CorpusError, owned=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _earlier(path: Path, rows: Callable[[Path], Iterator[Any]]) -> dict[str, Any]:
    """The note of the texts that are there; empty where nothing is.

    Raises:
        CorpusError: `write_corpus` did not write them as they are: they have no note with their hash, or more than
            their texts.
    """
    if not path.exists() or form_of(path) is None:
        return {}
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError, CorpusError):
        found = texts_hash(_only_text(row) for row in rows(path))
        note = _note_of(path, lambda: found)
        if note.get("hash") == found:
            return note
    raise CorpusError(
        f"{path} is there already, and is no corpus as it was saved: it has no note with the hash of its texts, or "
        "holds more than texts; choose another name, or move it away first."
    )


def _only_text(row: Any) -> str:
    if row.keys() != {"text"} or not row["text"].strip():
        raise ValueError("a row of something else")
    return row["text"]


def _jsonl_rows(path: Path) -> Iterator[Any]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches():
                yield from part.to_pylist()
    except pa.ArrowException as wrong:
        raise ValueError("a damaged file") from wrong


def note_files(path: Path) -> tuple[Path, Path]:
    """Where the note of texts can be beside them, the older place last."""
    return _about(path), path.with_suffix(".json")


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.about.json")


def _parquet_note(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.suppress(OSError, CorpusError, pa.ArrowException):
        note = (pq.read_schema(path).metadata or {}).get(NOTE.encode(), b"{}")
        return parse_json(note, dict[str, Any], CorpusError, f"{path} has no note of a corpus", infinite=True)
    return {}


def _json(file: Path) -> dict[str, Any]:
    with contextlib.suppress(CorpusError):
        return read_json(file, dict[str, Any], CorpusError, "a note of a corpus", infinite=True)
    return {}
