"""Files and folders as people and programs leave them: each text is read once and whole, or the file is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.corpus import Corpus, CorpusError

TEXTS = ['Plain, with a comma; and a "quote"', "two\nlines\r\nand\ttabs", "Grüße, 世界 🐕", "=1+1", " a | b "]


def test_a_folder_leaves_out_what_is_hidden_and_takes_endings_in_capitals(tmp_path: Path) -> None:
    inside = {
        "b/A.txt": "3",
        "b/a.txt": "4",
        "a.txt": "2",
        "B.TXT": "1",
        "b-c/x.Txt": "5",
        "c.JSONL": '{"text": "6"}',
        "d.CSV": "text\n7\n",
        ".ipynb_checkpoints/a-checkpoint.txt": "hidden",
        ".git/notes.txt": "hidden",
        "b/.cache/x.jsonl": "broken",
        "b/.x.txt": "hidden",
        "README.md": "no text",
        "c.jsonl.about.json": "{}",
    }
    for name, content in inside.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert Corpus.load(tmp_path).texts == tuple("1234567")
    assert Corpus.load(tmp_path / "B.TXT").texts == ("1",)
    dotted = tmp_path / ".git"
    assert Corpus.load(dotted).texts == ("hidden",)  # named by its user
    (tmp_path / "z.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"z\.txt can't be read"):
        Corpus.load(tmp_path)


def test_endings_in_capitals_are_written_and_read(tmp_path: Path) -> None:
    for name in ("a.PARQUET", "a.Jsonl"):
        Corpus(TEXTS, note={"licence": "CC0"}).save(tmp_path / name)
        again = Corpus.load(tmp_path / name)
        assert (list(again.texts), again.licence) == (TEXTS, "CC0")


def test_a_separator_counts_alone_on_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    texts = [f"Text {number} is here." for number in range(49)] + ["It ends with <|endoftext|> as they say."]
    for end in ("\n", "\r\n", "\r"):
        file.write_bytes(f"{end}{end}".join(texts).encode())
        assert list(Corpus.load(file).texts) == texts
        file.write_bytes(f"{end}<|endoftext|>  {end}".join(texts).encode())
        assert list(Corpus.load(file).texts) == texts
    file.write_text("One <|endoftext|>\n\nstill\n<|endoftext|>\n<|endoftext|>\nTwo")
    assert Corpus.load(file).texts == ("One <|endoftext|>\n\nstill", "Two")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_every_parquet_type_of_texts_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    plain = pa.array([*TEXTS, None, TEXTS[0]], kind)
    columns = [plain] if kind == pa.string_view() else [plain, plain.dictionary_encode()]
    for column in columns:
        pq.write_table(pa.table({"text": column, "other": column}), tmp_path / "x.parquet")
        assert list(Corpus.load(tmp_path / "x.parquet").texts) == [*TEXTS, TEXTS[0]]
    numbers = pa.array([1, 2]).dictionary_encode()
    pq.write_table(pa.table({"text": numbers}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match="holds int64, not text"):
        Corpus.load(tmp_path / "x.parquet")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
def test_a_table_gives_its_texts(delimiter: str, mark: str, tmp_path: Path) -> None:
    """Python's own writer and pandas wrote the tables."""
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS, "star": [1.5] * len(TEXTS)})
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter).writerows([frame.columns, *frame.to_numpy().tolist()])
    for text in (written.getvalue(), frame.to_csv(sep=delimiter), frame.to_csv(sep=delimiter, quoting=csv.QUOTE_ALL)):
        for name in ("x.csv", "x.tsv") if delimiter == "\t" else ("x.csv",):
            (tmp_path / name).write_bytes((mark + text).encode())
            assert list(Corpus.load(tmp_path / name).texts) == TEXTS
            assert list(Corpus.load(tmp_path / name, column="id").texts) == list("01234")
            assert list(Corpus.load(tmp_path / name, delimiter=delimiter).texts) == TEXTS


def test_the_column_is_found_where_only_one_can_be_meant(tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"

    def read(text: str, **how: str) -> tuple[str, ...]:
        file.write_text(text, newline="")
        return tuple(Corpus.load(file, **how).texts)

    assert read("id,Text\n1,hello\n") == ("hello",)
    assert read('date,review,stars\n2020-01-01 10:00,"A dog,\nbig",5\n2020-01-02 11:00,Cats,4\n') == (
        "A dog,\nbig",
        "Cats",
    )
    assert Corpus.load(file).source == f"{file}, column 'review'"
    assert read("review\r\n\r\nThe dog ran\r\nHello\r\n") == ("The dog ran", "Hello")
    assert read("sep=;\nid;text\n1;a,b\n") == ("a,b",)
    two = "title,body\nA dog,The dog ran\n"
    assert read(two, column="body") == ("The dog ran",)
    for text, how in (
        (two, {}),
        (two, {"column": "text"}),
        ("review\nThe dog ran\n", {"column": "text"}),
        ("I like dogs\nI hate cats\n", {}),  # its first text would be taken for a name
        ("word\ndog\ncat\n", {}),
        ("text\na\n", {"delimiter": "ab"}),
    ):
        with pytest.raises(CorpusError):
            read(text, **how)
    read("review\nThe dog ran\n")
    with pytest.raises(CorpusError, match="no column 'text'"):
        Corpus.load(tmp_path)  # in a folder nothing is guessed
    assert Corpus.load(tmp_path, column="review").texts == ("The dog ran",)


def test_quotes_in_files_with_tabs_are_plain_where_only_that_fits(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text('id\ttext\n1\t"Hello," he said.\n2\tHe said "no".\n')
    assert Corpus.load(file).texts == ('"Hello," he said.', 'He said "no".')
    file.write_text('id\ttext\n1\t"I came\n2\tI saw"\n')
    with pytest.raises(CorpusError, match="quotes can be read as plain"):
        Corpus.load(file)


def test_a_text_may_be_long(tmp_path: Path) -> None:
    long = "a dog, " * 40_000
    with (tmp_path / "x.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([["text"], [long]])
    assert Corpus.load(tmp_path / "x.csv").texts == (long,)
