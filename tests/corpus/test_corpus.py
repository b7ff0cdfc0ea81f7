"""Corpora: what is read from which file, how texts become token batches, and what is said when it can't be."""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

import workbench as wb
from workbench.corpus import Corpus, CorpusError, TokenBatch, bundled, special_ids
from workbench.corpus.reading import texts_of

TEXTS = [f"Story {number}. " + "The dog ran to the river. " * (number % 7 + 1) for number in range(60)]


@pytest.fixture
def corpus() -> Corpus:
    return Corpus(TEXTS, "sixty")


@pytest.fixture
def with_bos(llama: wb.model.LanguageModel) -> wb.model.LanguageModel:
    """The tiny model with a tokenizer that has a BOS token."""
    model = copy.copy(llama)
    model.tokenizer = copy.deepcopy(tiny.tokenizer())
    model.tokenizer.bos_token = "<|user|>"
    return model


def by_text(batches: Iterable[TokenBatch]) -> dict[int, list[tuple[int, int]]]:
    """By text, its tokens as (position, id), in the order of their positions."""
    found = defaultdict(list)
    for batch in batches:
        for row, text in enumerate(batch.texts.tolist()):
            keep = batch.positions[row] >= 0
            found[text] += zip(batch.positions[row][keep].tolist(), batch.tokens[row][keep].tolist(), strict=True)
    return {text: sorted(places) for text, places in found.items()}


def test_every_token_comes_exactly_once(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    found = by_text(corpus.batches(llama, context=20, batch=4))
    for text, words in enumerate(corpus.texts):
        ids = llama.to_tokens(words)[0].tolist()
        assert found[text] == list(enumerate(ids))


def test_batches_are_right_padded_with_little_padding(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    batches = list(corpus.batches(llama, context=90, batch=4))
    for batch in batches:
        lengths = batch.mask.sum(-1, keepdim=True)  # [batch, 1]
        assert batch.tokens.dtype == torch.int64
        assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < lengths)
        assert bool(batch.mask.any(0).all())  # no column is padding alone
        assert torch.equal(batch.mask[:, 1:], batch.content[:, 1:])  # there is no special token in these texts
        assert not batch.content[:, 0].any()
    share = sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)
    assert share > 0.9
    tokens, mask = batches[0]
    assert torch.equal(tokens, batches[0].tokens)
    assert torch.equal(mask, batches[0].mask)


def test_long_texts_become_windows_of_about_equal_length(llama: wb.model.LanguageModel) -> None:
    (batch,) = Corpus(["The dog ran to the river. " * 5]).batches(llama, context=30, batch=16)
    lengths = batch.mask.sum(-1).tolist()
    assert max(lengths) <= 30
    assert max(lengths) - min(lengths) <= 1


def test_bos_is_in_front_of_every_window_and_masked(corpus: Corpus, with_bos: wb.model.LanguageModel) -> None:
    bos = with_bos.tokenizer.bos_token_id
    for batch in corpus.batches(with_bos, context=20, batch=4):
        assert batch.tokens.shape[1] <= 20
        assert (batch.tokens[:, 0] == bos).all()
        assert batch.mask[:, 0].all()
        assert not batch.content[:, 0].any()
        assert (batch.positions[:, 0] == -1).all()
        assert torch.equal(batch.content[:, 1:], batch.mask[:, 1:])
    without = by_text(corpus.batches(with_bos, context=19, batch=4, bos=False))
    assert by_text(corpus.batches(with_bos, context=20, batch=4)) == without


def test_special_tokens_in_a_text_are_not_content(llama: wb.model.LanguageModel) -> None:
    (batch,) = Corpus(["<|user|>The dog<|end|>"]).batches(llama)
    ids = batch.tokens[0].tolist()
    assert ids[0] in special_ids(llama)
    assert batch.content[0].tolist() == [False, *[True] * (len(ids) - 2), False]
    assert batch.mask.all()


def test_batches_are_deterministic_and_seeds_differ(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    def order(seed: int, **how: bool) -> list[list[int]]:
        return [batch.texts.tolist() for batch in corpus.batches(llama, batch=4, seed=seed, **how)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(chain(*order(1))) == sorted(chain(*order(2)))
    first = next(iter(corpus.batches(llama, batch=4, shuffle=False)))
    assert len(set(first.mask.sum(-1).tolist())) <= 2


@pytest.mark.parametrize("tokens", [1, 7, 50, 333])
def test_a_limit_of_tokens_is_exact(
    corpus: Corpus, llama: wb.model.LanguageModel, with_bos: wb.model.LanguageModel, tokens: int
) -> None:
    batches = list(corpus.batches(with_bos, context=20, batch=4, tokens=tokens))
    assert sum(int(batch.content.sum()) for batch in batches) == tokens
    assert corpus.count_tokens(with_bos, at_most=tokens) == tokens
    batches = list(corpus.batches(llama, context=20, batch=4, tokens=tokens))
    assert sum(int(batch.content.sum()) for batch in batches) == tokens


def test_counted_tokens_are_those_of_the_batches(
    corpus: Corpus, llama: wb.model.LanguageModel, with_bos: wb.model.LanguageModel
) -> None:
    for model in (llama, with_bos):
        for context in (7, 20, 256):
            batches = corpus.batches(model, context=context, batch=4)
            counted = corpus.count_tokens(model, context=context)
            assert counted == sum(int(batch.content.sum()) for batch in batches)


def test_a_limited_sample_has_texts_of_all_lengths(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    """Sorting by length comes after the choice, so a small sample is not one of short texts."""
    chosen = {len(corpus.texts[text]) for b in corpus.batches(llama, batch=4, tokens=600) for text in b.texts.tolist()}
    assert len(chosen) >= 5


def test_repeating_goes_round_in_another_order(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    once = corpus.count_tokens(llama)
    batches = corpus.batches(llama, batch=60, tokens=2 * once, repeat=True)
    texts = torch.cat([batch.texts for batch in batches])
    assert texts.bincount().tolist() == [2] * 60
    assert sum(int(b.content.sum()) for b in corpus.batches(llama, tokens=2 * once)) == once


def test_shards_together_are_the_whole(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    whole = list(corpus.batches(llama, batch=4, tokens=500))
    shards = [list(corpus.batches(llama, batch=4, tokens=500, shard=(rank, 3))) for rank in range(3)]
    assert sum(map(len, shards)) == len(whole)
    for number, batch in enumerate(whole):
        assert torch.equal(batch.tokens, shards[number % 3][number // 3].tokens)


def test_split_shares_no_text_even_if_texts_repeat(llama: wb.model.LanguageModel) -> None:
    corpus = Corpus(TEXTS + TEXTS[:30], "some twice")
    train, held = corpus.split(0.2, seed=3)
    assert len(set(held.texts)) == 12
    assert len(train) + len(held) == 90
    assert not set(train.texts) & set(held.texts)
    assert corpus.split(0.2, seed=3)[1].hash == held.hash
    assert corpus.split(0.2, seed=4)[1].hash != held.hash


def test_take_and_hash(corpus: Corpus) -> None:
    assert corpus.take(5).texts == tuple(TEXTS[:5])
    assert corpus.take(100) is corpus
    assert Corpus(TEXTS).hash == corpus.hash
    assert Corpus(TEXTS[::-1]).hash != corpus.hash
    assert len(corpus) == 60
    assert "sixty" in repr(corpus)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_saved_and_loaded(tmp_path: Path, suffix: str) -> None:
    texts = ["Grüße, 世界 🐕", "two\n\nparagraphs\r\n", 'quotes " and \\ and \u2028 separators']
    corpus = Corpus(texts, "odd", {"licence": "CC0-1.0", "source": "written here"})
    (tmp_path / "odd.json").write_text("mine")
    corpus.save(tmp_path / f"odd{suffix}")
    again = Corpus.load(tmp_path / f"odd{suffix}")
    assert again.texts == tuple(texts)
    assert again.hash == corpus.hash
    assert (again.licence, again.source) == ("CC0-1.0", "written here")
    beside = ["odd.jsonl.about.json"] if suffix == ".jsonl" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.json", f"odd{suffix}", *beside]
    assert (tmp_path / "odd.json").read_text() == "mine"


def test_a_note_of_other_texts_is_refused(tmp_path: Path) -> None:
    one, other = Corpus(["one"], note={"licence": "A"}), Corpus(["other"], note={"licence": "B"})
    one.save(tmp_path / "a.jsonl")
    other.save(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "b.jsonl").read_bytes())
    with pytest.raises(CorpusError, match="hash of other texts"):
        Corpus.load(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.about.json").unlink()
    assert Corpus.load(tmp_path / "a.jsonl").licence == "unknown"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_notes_of_older_versions_are_read(tmp_path: Path, suffix: str) -> None:
    """Those versions wrote `NAME.json`."""
    texts = tmp_path / f"old{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": ["one"]}), texts)
    else:
        texts.write_text('{"text": "one"}\n')
    note = {"licence": "A", "source": "there", "hash": Corpus(["one"]).hash}
    (tmp_path / "old.json").write_text(json.dumps(note))
    assert Corpus.load(texts).note == note
    (tmp_path / "old.json").write_text(json.dumps(note | {"hash": Corpus(["two"]).hash}))
    with pytest.raises(CorpusError, match=r"old\.json records the hash of other texts"):
        Corpus.load(texts)


def test_txt_is_split_at_separators_or_headings_or_blank_lines(tmp_path: Path) -> None:
    def read(text: str) -> tuple[str, ...]:
        file = tmp_path / "texts.txt"
        file.write_text(text, encoding="utf-8")
        return tuple(Corpus.load(file).texts)

    assert read("One.\n\nTwo\nlines.\n \n\n\nThree.\n") == ("One.", "Two\nlines.", "Three.")
    assert read("One.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>") == ("One.\n\nStill one.", "Two.")
    wiki = " \n = Dogs = \n \n A dog . \n \n = = Food = = \n \n Bones . \n \n = Cats = \n \n A cat . \n"
    assert read(wiki) == ("= Dogs = \n \n A dog . \n \n = = Food = = \n \n Bones .", "= Cats = \n \n A cat .")
    assert read("\ufeffWith a byte order mark.") == ("With a byte order mark.",)


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("third")
    pq.write_table(pa.table({"text": ["second", None, "  "]}), tmp_path / "a.parquet")
    (tmp_path / "0.jsonl").write_text('{"text": "first", "more": 1}\n\n')
    (tmp_path / "README.md").write_text("not a text")
    assert Corpus.load(tmp_path).texts == ("first", "second", "third")
    limited = Corpus.load(str(tmp_path), limit=2)
    assert limited.texts == ("first", "second")
    assert limited.name == f"{tmp_path}[:2]"


def test_another_column(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "hello"}\n')
    assert Corpus.load(tmp_path / "x.jsonl", column="body").texts == ("hello",)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """By what is wrong: a file that has it, and a part of the sentence that says so."""
    write = {
        "empty.txt": b"  \n\n ",
        "latin.txt": "caf\xe9 cr\xe8me".encode("latin-1"),
        "broken.jsonl": b'{"text": "fine"}\n{"text": \n',
        "nofield.jsonl": b'{"words": "fine"}\n',
        "number.jsonl": b'{"text": 5}\n',
        "list.jsonl": b"[1]\n",
        "cut.parquet": b"PAR1 and no more",
        "odd.md": b"text\nhello\n",
        "wide.txt": "Grüße".encode("utf-16"),
        "wide.csv": "text\nhello\n".encode("utf-16-le"),
        "latin.csv": "text\ncaf\xe9\n".encode("latin-1"),
        "ragged.csv": b"id,text\n1,hello\n2,hello, dog\n",
        "open.csv": b'id,text\n1,"hello\n2,dog\n',
        "escaped.csv": b'id,text\n1,"say \\"hi\\" now"\n',
        "twice.csv": b"text,text\na,b\n",
        "bare.csv": b"the dog ran, it ran\nthe cat sat, it sat\n",
        "none.csv": b"id,title,body\n1,A dog,The dog ran\n",
        "tell.csv": b"a,b;c\n1,2;3\n",
    }
    for name, content in write.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"words": ["a"], "id": [1]}), folder / "columns.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    (folder / "bare").mkdir()
    said = {
        "empty.txt": "holds no text at all",
        "latin.txt": r"is not UTF-8 text \(byte 0xe9 at 3\)",
        "broken.jsonl": "Line 2 of .* is not a JSON object",
        "nofield.jsonl": "Line 1 of .* has no field 'text'; it has words; .* column=",
        "number.jsonl": "is not a text",
        "list.jsonl": "Line 1 of .* is not a JSON object",
        "cut.parquet": "is not a whole Parquet file",
        "odd.md": r"is not a .txt, .jsonl, .csv, .tsv or .parquet file",
        "wide.txt": "is UTF-16, not UTF-8 text",
        "wide.csv": "is UTF-16 or no text, not UTF-8",
        "latin.csv": r"is not UTF-8 text \(byte 0xe9 at 8\)",
        "ragged.csv": "is no table: line 3 has 3 fields where the first names 2 columns",
        "open.csv": "a quote before line 4 is not closed",
        "escaped.csv": "not doubled inside a field",
        "twice.csv": "has 2 columns 'text'",
        "bare.csv": "has no column 'text'; it has the dog ran, it ran; name it in the first line, or with column=",
        "none.csv": "has no column 'text'; it has id, title, body; name it in the first line, or with column=",
        "tell.csv": "delimiter of .* can't be told, since comma and semicolon fit",
        "columns.parquet": "has no column 'text'; it has words, id",
        "numbers.parquet": "holds int64, not text",
        "bare": "holds no .txt, .jsonl, .csv, .tsv or .parquet file",
        "absent.txt": "There is no file or folder",
    }
    return {name: (folder / name, sentence) for name, sentence in said.items()}


def test_bad_files_are_named_in_one_sentence(tmp_path: Path) -> None:
    for path, sentence in bad_files(tmp_path).values():
        with pytest.raises(CorpusError, match=sentence) as caught:
            Corpus.load(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_unknown_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="'storis' is no file, no bundled corpus and no Hugging Face dataset"):
        Corpus.load("storis")
    with pytest.raises(CorpusError, match="can be reached"):
        Corpus.load("owner/name:config:train")


def test_rows_of_a_streamed_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", " ", "b"], "id": [1, 2, 3]}).to_iterable_dataset()
    assert list(texts_of(rows, "some/name", "text")) == ["a", "b"]
    with pytest.raises(CorpusError, match="some/name has no text in a column 'body'; it has text, id"):
        list(texts_of(rows, "some/name", "body"))


@pytest.mark.parametrize(
    "how", [{"context": 1}, {"batch": 0}, {"tokens": 0}, {"seed": -1}, {"shard": (2, 2)}, {"shard": (-1, 2)}], ids=str
)
def test_bad_settings_are_said_at_once(corpus: Corpus, llama: wb.model.LanguageModel, how: dict) -> None:
    with pytest.raises(CorpusError, match=re.escape(str(next(iter(how.values()))))):
        corpus.batches(llama, **how)


def test_bad_corpora(corpus: Corpus, llama: wb.model.LanguageModel) -> None:
    for texts in ([], ["  "], "one string", [1]):
        with pytest.raises(CorpusError):
            Corpus(texts)  # type: ignore[arg-type]
    for share in (0, 1, -0.5):
        with pytest.raises(CorpusError, match="above 0 below 1"):
            corpus.split(share)
    with pytest.raises(CorpusError, match="only one distinct"):
        Corpus(["a", "a"]).split(0.5)
    with pytest.raises(CorpusError, match="from 1"):
        corpus.take(0)
    mute = copy.copy(llama)
    mute.tokenizer = None
    with pytest.raises(CorpusError, match="without a tokenizer"):
        corpus.batches(mute)


@pytest.mark.skipif("stories" not in bundled(), reason="the bundled corpus has not been written yet")
def test_bundled_corpus_is_what_its_note_says() -> None:
    stories = Corpus.load("stories")
    note = json.loads((Path(__file__).parents[2] / "data" / "corpora" / "stories.json").read_text())
    assert stories.name == "stories"
    assert stories.hash == note["hash"]
    assert len(stories) == note["texts"] >= 3000
    assert note["tokens"] >= 500_000
    assert stories.licence == "Apache-2.0"
    assert len(set(stories.texts)) == len(stories)


def test_passages_hold_every_line_once() -> None:
    texts = ["one\ntwo\n\nthree is longer\nfour", "\n \n", "five", "six and seven\n" * 3]
    corpus = Corpus(texts, "some")
    for characters in (1, 5, 9, 1000):
        found = corpus.passages(characters)
        assert "".join("".join(found.texts).split()) == "".join("".join(texts).split())
        assert all(any(one in text for text in texts) for one in found.texts)
        assert all(len(one) >= characters or any(text.endswith(one) for text in texts) for one in found.texts)
        assert all(len("".join(one.splitlines(keepends=True)[:-1])) < characters for one in found.texts)
    assert corpus.passages(1000).texts == corpus.texts
    assert "passages of 9" in corpus.passages(9).name
    with pytest.raises(CorpusError, match="whole number from 1"):
        corpus.passages(0)
