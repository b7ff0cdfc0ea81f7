"""Reading the texts of a corpus: bundled files, text files, JSON lines, Parquet, Hugging Face datasets."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.core.forms import parse_json
from workbench.core.type_words import reason_of
from workbench.corpus.saving import CorpusError, read_note

COLUMN = "text"
"""The column of the texts in the corpora that Workbench writes."""
_BUNDLED = Path(__file__).resolve().parents[2] / "data" / "corpora"


def read_source(source: str | Path, column: str) -> tuple[Iterator[str], Path | None, dict[str, Any]]:
    """The texts of a source of `Corpus.load`.

    Args:
        source: a bundled name, a file, a folder, or a Hugging Face dataset.
        column: the column or field with the text.

    Returns:
        The texts that are not blank; their file or folder, None if they are streamed; the note on them.

    Raises:
        CorpusError: nothing is there, or it can't be read; for a stream, at its first use.
    """
    name = str(source)
    if not name.strip():
        raise CorpusError("Name a corpus: a bundled name such as stories, a file, a folder, or a data set.")
    path = Path(source).expanduser()
    if name in bundled():
        path = _BUNDLED / f"{name}.parquet"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _READERS and file.is_file())
        if not files:
            raise CorpusError(f"The folder {path} holds no {_any_of(_READERS)} file.")
        texts = itertools.chain.from_iterable(_read(file, column) for file in files)
    elif path.is_file():
        if path.suffix not in _READERS:
            raise CorpusError(f"{path} is not a {_any_of(_READERS)} file.")
        texts = _read(path, column)
    elif path.suffix in _READERS or path.is_absolute() or name.startswith((".", "~")):
        raise CorpusError(f"There is no file or folder {path}.")
    elif name == "stories":
        raise CorpusError(f"The bundled corpus 'stories' is missing: there is no {_BUNDLED / 'stories.parquet'}.")
    else:
        return _stream(name, column), None, {"source": f"Hugging Face: {name}"}
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise CorpusError(f"{path} holds no text at all.")
    return iter(kept), path, {"source": name, **read_note(path, kept if column == COLUMN else None)}


def bundled() -> list[str]:
    """The names of the corpora that come with Workbench."""
    return sorted(file.stem for file in _BUNDLED.glob("*.parquet"))


def _read(file: Path, column: str) -> Iterable[str]:
    try:
        return _READERS[file.suffix](file, column)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start:,}); convert it first."
        ) from error
    except OSError as error:
        raise CorpusError(f"{file} can't be read: {reason_of(error)}.") from error


def _read_txt(file: Path, column: str) -> list[str]:
    whole = file.read_text(encoding="utf-8-sig")
    if "<|endoftext|>" in whole:
        parts = whole.split("<|endoftext|>")
    elif re.search(r"^ = [^=].* = $", whole, re.MULTILINE):
        parts = re.split(r"(?m)^(?= = [^=].* = $)", whole)
    else:
        parts = re.split(r"\n[ \t]*\n", whole)
    return [part.strip() for part in parts]


def _read_jsonl(file: Path, column: str) -> list[str]:
    texts = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        complaint = f"Line {number:,} of {file} is not a JSON object with the field {column!r}"
        row = parse_json(line, dict[str, Any], CorpusError, complaint)
        if column not in row:
            raise CorpusError(f"{complaint}.")
        if not isinstance(row[column], str):
            raise CorpusError(f"Line {number:,} of {file} has a field {column!r} that is not a text.")
        texts.append(row[column])
    return texts


def _read_parquet(file: Path, column: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        if column not in names:
            raise CorpusError(f"{file} has no column {column!r}; it has {', '.join(names)}.")
        values = pq.read_table(file, columns=[column])[column]
    except pa.ArrowException as error:
        raise CorpusError(f"{file} is not a whole Parquet file ({str(error).splitlines()[0].rstrip('.')}).") from error
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise CorpusError(f"The column {column!r} of {file} holds {values.type}, not text.")
    return [text or "" for text in values.to_pylist()]


_READERS: dict[str, Callable[[Path, str], list[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _any_of(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _stream(name: str, column: str) -> Iterator[str]:
    """The texts of a Hugging Face dataset, as they arrive."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    repository, config, split = [*name.split(":"), "", ""][:3]
    try:
        HfApi().dataset_info(repository, timeout=10)  # fails at once without a network; load_dataset takes minutes
        rows = load_dataset(repository, config or None, split=split or "train", streaming=True)
        yield from texts_of(rows, name, column)
    except CorpusError:
        raise
    except Exception as error:
        reason = reason_of(error)
        near = difflib.get_close_matches(name, bundled(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"bundled are: {', '.join(bundled()) or 'none'}."
        raise CorpusError(
            f"{name!r} is no file, no bundled corpus and no Hugging Face dataset that can be reached ({reason}); {hint}"
        ) from error


def texts_of(rows: Iterable[dict[str, Any]], name: str, column: str) -> Iterator[str]:
    """The texts in a column of a dataset whose rows are dictionaries; raises `CorpusError` where one has no text."""
    for row in rows:
        if not isinstance(row.get(column), str):
            raise CorpusError(f"{name} has no text in a column {column!r}; it has {', '.join(row)}.")
        if row[column].strip():
            yield row[column]
