"""Reading the texts of a corpus: bundled files, text files, JSON lines, CSV, Parquet, Hugging Face datasets."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.core.delimited import check_delimiter
from workbench.core.forms import parse_json
from workbench.core.paths import check_ordinary, leads_out
from workbench.core.shipped import VARIABLE, shipped
from workbench.core.steady import read_steadily
from workbench.core.text_files import read_utf8
from workbench.core.type_words import reason_of
from workbench.corpus.saving import CorpusError, note_files, read_note
from workbench.corpus.tables import COLUMN, Wanted, no_column, read_delimited, read_parquet

_SEPARATOR = re.compile(r"^[ \t]*<\|endoftext\|>[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t]*\n")


def read_source(source: str | Path, wanted: Wanted) -> tuple[Iterator[str], Path | None, dict[str, Any]]:
    """The texts of a source of `Corpus.load`.

    Args:
        source: a bundled name, a file, a folder, or a Hugging Face dataset.
        wanted: the column or field with the text, and the delimiter.

    Returns:
        The texts that are not blank; their file or folder, None if they are streamed; the note on them.

    Raises:
        CorpusError: nothing is there, or it can't be read; for a stream, at its first use.
    """
    check_delimiter(wanted.delimiter, CorpusError)
    name = str(source)
    if not name.strip():
        raise CorpusError("Name a corpus: a bundled name such as stories, a file, a folder, or a data set.")
    path = Path(source).expanduser()
    path = _shipped().get(name, path)
    if path.exists():
        kept, note = read_steadily(lambda: _of_path(path, name, wanted), (path, *note_files(path)), CorpusError)
        return iter(kept), path, note
    if ending(path) in _READERS or path.is_absolute() or name.startswith((".", "~")):
        raise CorpusError(f"There is no file or folder {path}.")
    if name == "stories":
        raise CorpusError(
            f"The bundled corpus 'stories' is missing; name a folder that holds corpora/stories.parquet in {VARIABLE}."
        )
    return _stream(name, wanted.name), None, {"source": f"Hugging Face: {name}"}


def _of_path(path: Path, name: str, wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    """The texts of a file or folder that are not blank, and the note on them, whose source is called `name`."""
    if path.is_dir():
        inside = replace(wanted, alone=False)
        texts: Iterable[str] = itertools.chain.from_iterable(_read(file, inside)[0] for file in files_in(path))
    else:
        if ending(path) not in _READERS:
            raise CorpusError(f"{path} is not a {_any_of(_READERS)} file.")
        texts, column = _read(path, wanted)
        if column != wanted.name:
            name = f"{name}, column {column!r}"
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise CorpusError(f"{path} holds no text at all.")
    return kept, {"source": name, **read_note(path, kept if wanted.name == COLUMN else None)}


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of those inside it that a corpus is read from.

    Hidden files and folders, whose names begin with a full stop, are left out, and folders behind links. Paths are
    sorted name by name, by the code points of their characters: capitals before small letters.

    Raises:
        CorpusError: a folder can't be read, there is no such file, or one is a link out of the folder.
    """

    def fail(error: OSError) -> None:
        raise CorpusError(f"{error.filename or folder} can't be read: {reason_of(error)}.") from error

    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    files = [file for file in found if ending(file) in _READERS and (file.is_file() or file.is_symlink())]
    if not files:
        raise CorpusError(f"The folder {folder} holds no {_any_of(_READERS)} file.")
    for file in sorted(files):
        if file.is_symlink() and leads_out(file, folder):
            raise CorpusError(f"{file} is a link out of its folder, and is not followed; put a copy in its place.")
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def ending(path: Path) -> str:
    """The ending of a file's name in small letters, with its full stop."""
    return path.suffix.lower()


def bundled() -> list[str]:
    """The names of the corpora that come with Workbench."""
    return list(_shipped())


def _shipped() -> dict[str, Path]:
    return shipped("corpora", "*.parquet")


def _read(file: Path, wanted: Wanted) -> tuple[list[str], str]:
    """The texts of a file, and the column that they stand in."""
    check_ordinary(file, CorpusError)
    try:
        return _READERS[ending(file)](file, wanted)
    except OSError as error:
        raise CorpusError(f"{file} can't be read: {reason_of(error)}.") from error


def _plain_text(file: Path) -> str:
    """The text of a file, with line ends as `\\n`."""
    return read_utf8(file, CorpusError).replace("\r\n", "\n").replace("\r", "\n")


def _read_txt(file: Path, wanted: Wanted) -> tuple[list[str], str]:
    whole = _plain_text(file)
    parting = next((one for one in (_SEPARATOR, _HEADING) if one.search(whole)), _BLANK_LINES)
    return [part.strip() for part in parting.split(whole)], wanted.name


def _read_jsonl(file: Path, wanted: Wanted) -> tuple[list[str], str]:
    texts, field = [], wanted.name
    for number, line in enumerate(_plain_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        complaint = f"Line {number:,} of {file} is not a JSON object with the field {field!r}"
        row = parse_json(line, dict[str, Any], CorpusError, complaint)
        if field not in row:
            place = f"Line {number:,} of {file}"
            raise CorpusError(f"{no_column(place, field, list(row), 'field')}; name the one with the text in column=.")
        if not isinstance(row[field], str):
            raise CorpusError(f"Line {number:,} of {file} has a field {field!r} that is not a text.")
        texts.append(row[field])
    return texts, field


_READERS: dict[str, Callable[[Path, Wanted], tuple[list[str], str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".parquet": read_parquet,
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
        how: dict[str, Any] = {"split": split or "train", "streaming": True, "trust_remote_code": False}
        rows = load_dataset(repository, config or None, **how)
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
