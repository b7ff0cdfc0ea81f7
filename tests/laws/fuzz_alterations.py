"""Alterations of files: JSON of another form, tensors and tables that are cut, swapped or lack a part."""

from __future__ import annotations

import copy as copying
import functools
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

NAN = float("nan")
DEEP = "[" * 100_000 + "]" * 100_000
RAW = "@raw@"
"""Marks a value that is put into JSON as it is written."""
JUNK: dict[str, Any] = {
    "null": None,
    "true": True,
    "-1": -1,
    "0": 0,
    "0.5": 0.5,
    "2**31": 2**31,
    "2**63": 2**63,
    "3e38": 3e38,
    "a text": "no such thing",
    "an empty text": "",
    "a NUL": "a\0b",
    "a surrogate": "a\ud800b",
    "a path": "../../etc",
    "a long text": "a" * 6000,
    "a list": [1],
    "an empty list": [],
    "an object": {"a": 1},
    "an empty object": {},
    "nan": f"{RAW}NaN",
    "infinity": f"{RAW}Infinity",
    "1e999": f"{RAW}1e999",
    "5000 digits": RAW + "9" * 5000,
    "depth": RAW + DEEP,
}


def written(content: Any) -> str:
    """JSON in which marked texts stand as they are."""
    text = json.dumps(content)
    for value in JUNK.values():
        if isinstance(value, str) and value.startswith(RAW):
            text = text.replace(json.dumps(value), value.removeprefix(RAW))
    return text


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    content = copying.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


def removed(content: Any, path: tuple[Any, ...]) -> Any:
    """A copy without the value at a path."""
    content = copying.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


Alteration = tuple[str, Callable[[Path], Any]]
"""What is done, and the doing, to a copy of the file."""


def put_text(copy: Path, new: str) -> None:
    """Write a text, with halves of characters as they are."""
    copy.write_text(new, encoding="utf-8", errors="surrogatepass")


def json_alterations(
    file: Path, text: str | None = None, put: Callable[[Path, str], Any] = put_text
) -> Iterator[Alteration]:
    """Every alteration of a JSON file: of each value in it, and of the whole."""
    text = file.read_text(encoding="utf-8") if text is None else text
    content = json.loads(text)

    def alter(make: Callable[..., str], *of: Any) -> Callable[[Path], None]:
        return lambda copy: put(copy, make(*of))

    wholes = {"empty": "", "cut": text[: len(text) // 2], "deep": DEEP, "deep object": '{"a":' * 100_000}
    wholes |= {"a list": "[]", "an object": "{}", "null": "null", "a number": "9" * 5000, "a surrogate": '"\\ud800"'}
    wholes |= {"not JSON": "\0", "trailing": text + "x", "BOM": "\ufeff" + text}
    for name, new in wholes.items():
        yield f"{file.name}: {name}", alter(str, new)
    for path in places(content):
        where = ".".join(map(str, path))
        yield f"{file.name}: without {where}", alter(lambda path=path: json.dumps(removed(content, path)))
        for name, value in JUNK.items():
            change = functools.partial(changed, content, path, value)
            yield f"{file.name}: {where} = {name}", alter(lambda change=change: written(change()))


def lines_alterations(file: Path) -> Iterator[Alteration]:
    """Alterations of a file of JSON lines: of single lines."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for number in {0, len(lines) // 2, len(lines) - 1} if lines else ():

        def put(copy: Path, new: str, number: int = number) -> None:
            put_text(copy, "\n".join([*lines[:number], new, *lines[number + 1 :]]) + "\n")

        for name, act in json_alterations(file, lines[number], put):
            yield f"line {number} of {name}", act


def bytes_alterations(file: Path, seed: int = 0) -> Iterator[Alteration]:
    """A file cut short, emptied, overwritten in places, replaced by a folder, or gone."""
    whole, chance = file.read_bytes(), random.Random(seed)

    def alter(new: bytes) -> Callable[[Path], None]:
        return lambda copy: _put_bytes(copy, new)

    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        yield f"{file.name}: cut to {share:.0%}", alter(whole[: int(share * len(whole))])
    yield f"{file.name}: one byte more", alter(whole + b"x")
    for number in range(6):
        new = bytearray(whole)
        for _ in range(1 + number * 3):
            if new:
                new[chance.randrange(len(new) if number % 2 else min(len(new), 200))] = chance.randrange(256)
        yield f"{file.name}: bytes altered ({number})", alter(bytes(new))
    yield f"{file.name}: other bytes", alter(chance.randbytes(500))
    yield f"{file.name}: gone", Path.unlink


def _put_bytes(file: Path, new: bytes) -> None:
    file.unlink()  # what is mapped elsewhere stays
    file.write_bytes(new)


def tensor_alterations(file: Path) -> Iterator[Alteration]:
    """Tensors that are not finite, cut, turned, of another type, swapped, missing or too many."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118

    def alter(**new: Any) -> Callable[[Path], None]:
        kept = {name: one for name, one in {**tensors, **new}.items() if one is not None}
        return lambda copy: save_file({name: one.contiguous() for name, one in kept.items()}, copy, about)

    names = sorted(tensors)
    for name in names:
        one = tensors[name]
        if one.is_floating_point() and one.numel():
            for value in (NAN, float("inf")):
                wrong = one.clone()
                wrong.view(-1)[wrong.numel() // 2] = value
                yield f"{file.name}: {value} in {name}", alter(**{name: wrong})
        yield f"{file.name}: {name} cut", alter(**{name: one[:-1] if one.ndim else one[None]})
        yield f"{file.name}: {name} flat", alter(**{name: one.reshape(-1)})
        yield f"{file.name}: {name} of whole numbers", alter(**{name: one.nan_to_num().long()})
        yield f"{file.name}: {name} empty", alter(**{name: one.new_zeros(0)})
        yield f"{file.name}: without {name}", alter(**{name: None})
        for other in names:
            if other > name:
                yield f"{file.name}: {name} and {other} swapped", alter(**{name: tensors[other], other: one})
    yield f"{file.name}: one more", alter(stranger=torch.zeros(3))
    yield f"{file.name}: none", alter(**dict.fromkeys(names))


def parquet_alterations(file: Path) -> Iterator[Alteration]:
    """Columns that are missing or of another type, and rows that are missing."""
    table = pq.read_table(file)

    def alter(new: pa.Table) -> Callable[[Path], None]:
        return lambda copy: pq.write_table(new, copy)

    for name in table.column_names:
        place = table.column_names.index(name)
        yield f"{file.name}: without {name}", alter(table.drop_columns([name]))
        nothing = pa.array([None] * len(table), table.schema.field(name).type)
        yield f"{file.name}: {name} of nothing", alter(table.set_column(place, name, nothing))
        words = pa.array([str(row) for row in range(len(table))], pa.string())
        yield f"{file.name}: {name} of words", alter(table.set_column(place, name, words))
        numbers = pa.array([NAN] * len(table), pa.float64())
        yield f"{file.name}: {name} of nan", alter(table.set_column(place, name, numbers))
    yield f"{file.name}: no rows", alter(table.slice(0, 0))
    yield f"{file.name}: a row less", alter(table.slice(1))


def sqlite_alterations(file: Path) -> Iterator[Alteration]:
    """Tables that are missing, and values of other types."""

    def alter(script: str) -> Callable[[Path], None]:
        def act(copy: Path) -> None:
            with closing(sqlite3.connect(copy)) as connection, suppress(sqlite3.Error):
                connection.executescript(script)

        return act

    with closing(sqlite3.connect(file)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in tables:
        yield f"{file.name}: without {name}", alter(f"DROP TABLE {name};")
        yield f"{file.name}: {name} of one column", alter(f"DROP TABLE {name}; CREATE TABLE {name} (x);")
    if "remarks" in tables:
        for column, value in (("label", "x'ff'"), ("starred", "'x'"), ("note", "12"), ("feature", "-5")):
            yield f"{file.name}: {column} = {value}", alter(f"UPDATE remarks SET {column} = {value};")
