"""Damaged indexes, folders of something else, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from index_models import HOW, POINT, World, make_sae

import workbench as wb
from workbench.core.patterns import MOST, SafePattern
from workbench.corpus import Corpus
from workbench.dictionaries.topk import TopKSAE
from workbench.index.layout import FeatureIndexError
from workbench.interventions.features import dictionary_of


def test_damage_is_seen(unbroken: Path, llama, zoo, tmp_path: Path) -> None:
    def broken() -> Path:
        shutil.rmtree(tmp_path / "i", ignore_errors=True)
        shutil.copytree(unbroken / "sae", tmp_path / "i")
        return tmp_path / "i" / "data"

    for name in [file.name for file in broken().iterdir() if file.stat().st_size and file.name != "index.json"]:
        data = broken()
        whole = (data / name).read_bytes()
        for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            if damaged is None:
                (data / name).unlink()
            else:
                (data / name).write_bytes(damaged)
            with pytest.raises(wb.index.FeatureIndexError, match=re.escape(name)):
                wb.open_index(tmp_path / "i")
    for note in ("", "[]", "{}", "null"):
        (broken() / "index.json").write_text(note)
        with pytest.raises(wb.index.FeatureIndexError, match=r"index\.json"):
            wb.open_index(tmp_path / "i")
    said = json.loads((broken() / "index.json").read_text())
    (tmp_path / "i" / "data" / "index.json").write_text(json.dumps(said | {"format": 99}))
    with pytest.raises(wb.index.FeatureIndexError, match="format 99"):
        wb.open_index(tmp_path / "i")
    broken()
    (tmp_path / "i" / "people.sqlite").write_text("this is no database, and it is long enough to be looked at" * 50)
    with pytest.raises(wb.index.FeatureIndexError, match=r"people\.sqlite"):
        wb.open_index(tmp_path / "i")
    with pytest.raises(wb.index.FeatureIndexError, match="holds no index"):
        wb.open_index(tmp_path / "nothing")
    with pytest.raises(wb.index.FeatureIndexError, match="was built on"):
        wb.open_index(unbroken / "sae", zoo["qwen2"])
    with pytest.raises(wb.index.FeatureIndexError, match="is the index of"):
        wb.open_index(unbroken / "sae", dictionary=make_sae(1))
    with pytest.raises(wb.index.FeatureIndexError, match="is the index of"):
        wb.open_index(unbroken / "neurons", llama, dictionary_of(llama, "neurons.1.post:0"))
    opened = wb.open_index(unbroken / "neurons", llama, dictionary_of(llama, "neurons.0.post:0"))
    assert opened.about["harvest"]["model_hash"] == llama.hash
    assert {"versions", "command", "corpus"} <= set(opened.about)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_tokens": "many"}, "n_tokens should be a whole number"),
        ({"dictionary": {"name": "x"}}, r"it has no dictionary\.reads"),
        ({"harvest": []}, "harvest should be"),
        ({"keep": 1.5}, "keep"),
        ({"files": {"tokens.bin": 3}}, r"files\.tokens\.bin should be"),
        ({"format": "1"}, "format should be a valid integer"),
    ],
)
def test_an_altered_note_is_refused_in_one_sentence(
    unbroken: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(unbroken / "sae", tmp_path / "i")
    note = tmp_path / "i" / "data" / "index.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    with pytest.raises(wb.index.FeatureIndexError, match=words) as caught:
        wb.open_index(tmp_path / "i")
    assert "\n" not in str(caught.value)
    note.write_text("[" * 100_000)
    with pytest.raises(wb.index.FeatureIndexError, match="nested too deeply"):
        wb.open_index(tmp_path / "i")


@pytest.mark.parametrize("name", ["data", "building"])
def test_what_is_no_index_is_never_replaced(sae_world: World, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(wb.index.FeatureIndexError, match="choose another folder"):
        wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path, **HOW)
    assert mine.read_text() == "precious"


def test_bad_input(llama, sae_world: World, corpus: Corpus, tmp_path: Path) -> None:
    index = sae_world.index
    with pytest.raises(wb.index.FeatureIndexError, match="there is no 24"):
        index.feature(24)
    for bad in (-1, "3", True, 1.0):
        with pytest.raises(wb.index.FeatureIndexError, match="index is a whole number from 0"):
            index.feature(bad)  # type: ignore[arg-type]
    for settings in ({"regex": "("}, {"text": " "}, {"order": "x"}, {"limit": 0}, {"density": 0.5}):
        with pytest.raises(wb.index.FeatureIndexError):
            index.search(**settings)
    with pytest.raises(wb.index.FeatureIndexError):
        index.label(0, None)  # type: ignore[arg-type]
    for dictionary, settings in (
        (TopKSAE(32, 24, 4), {}),
        (TopKSAE(31, 24, 4, hook_point=POINT), {}),
        (make_sae(), {"keep": 10}),
        (make_sae(), {"keep": True}),
    ):
        with pytest.raises(wb.index.FeatureIndexError):
            wb.build_index(llama, dictionary, corpus, tmp_path / "i", **settings)
    with pytest.raises(wb.index.FeatureIndexError, match="no dictionary"):
        wb.index.build_indexes(llama, {}, corpus)
    huge = make_sae()
    huge.b_enc += 1e6
    with pytest.raises(wb.index.FeatureIndexError, match="65,504"):
        wb.build_index(llama, huge, corpus, tmp_path / "i")
    with pytest.raises(wb.index.FeatureIndexError, match="not special"):
        wb.build_index(llama, make_sae(), Corpus(["<|end|>"]), tmp_path / "i")


@pytest.mark.parametrize(
    ("pattern", "repetitions"),
    [
        (r"\d{1,100}[a-z]{1,101}", 201),
        (r"(?:a{100}b{50}){3}", 450),
        (r"(?:(?:ab){2,10}c){10}|d{7}", 107),
        (r"[(]{9}(?:[)\]]{5}\){5}){6}", 69),
        (r"(a(b)){8}\{3}", 8),
    ],
)
def test_repetitions_inside_one_another_multiply_and_those_side_by_side_add(pattern: str, repetitions: int) -> None:
    times = MOST // repetitions
    assert SafePattern(f"(?:{pattern}){{{times}}}", FeatureIndexError)
    with pytest.raises(FeatureIndexError, match="repeats too often"):
        SafePattern(f"(?:{pattern}){{{times + 1}}}", FeatureIndexError)


def test_repetitions_whose_nesting_is_unsure_multiply() -> None:
    assert SafePattern("a|b+", FeatureIndexError)
    assert SafePattern("(?x)a{100}b{100} # (", FeatureIndexError)
    for pattern in ("(?x)a{100}b{101}", "(?V1)(?:a{100}[[a])]){101}", "(?:a{100}(?#)){101}", "a{9999999999}"):
        with pytest.raises(FeatureIndexError, match="repeats too often"):
            SafePattern(pattern, FeatureIndexError)
