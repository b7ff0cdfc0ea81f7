"""Labels, notes and stars survive rebuilds and kills."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from index_models import HOW, make_sae

import workbench as wb
from workbench.corpus import Corpus


def test_labels_survive_a_rebuild_and_travel(llama, corpus: Corpus, tmp_path: Path) -> None:
    sae, path = make_sae(), tmp_path / "i"
    index = wb.build_index(llama, sae, corpus, path, tokens=200, **HOW)
    index.label(3, "größe")
    index.note(3, "first\nsecond")
    index.star(4)
    index.star(5)
    index.star(5, False)
    again = wb.build_index(llama, sae, corpus, path, tokens=300, **HOW)
    assert again.n_tokens == 300
    card = again.feature(3)
    assert (card.label, card.note, card.starred) == ("größe", "first\nsecond", False)
    assert set(again.remarks()) == {3, 4}
    again.export_labels(tmp_path / "labels.json")
    other = wb.build_index(llama, sae, corpus, tmp_path / "j", tokens=200, **HOW)
    other.label(8, "stays")
    assert other.import_labels(tmp_path / "labels.json") == 2
    assert other.remarks() == again.remarks() | {8: other.remarks()[8]}
    assert [hit.index for hit in other.search(label="größe")] == [3]
    foreign = wb.build_index(llama, make_sae(1), corpus, tmp_path / "k", tokens=200, **HOW)
    with pytest.raises(wb.index.FeatureIndexError, match="another dictionary"):
        foreign.import_labels(tmp_path / "labels.json")
    with pytest.raises(wb.index.FeatureIndexError, match="another dictionary"):
        wb.build_index(llama, make_sae(1), corpus, path, tokens=200, **HOW)
    starred = {"dictionary": other.about["dictionary"]["hash"], "features": {"1": {"starred": 1}}}
    wrong = ('{"features": {}}', json.dumps(starred), "[" * 100_000)
    for damage in ("[]", "{}", '{"dictionary": 1, "features": {"x": {}}}', "no json", *wrong):
        (tmp_path / "labels.json").write_text(damage)
        with pytest.raises(wb.index.FeatureIndexError):
            other.import_labels(tmp_path / "labels.json")
    said = {"dictionary": other.about["dictionary"]["hash"], "features": {"2": {"label": "ok"}, "99": {"label": "no"}}}
    (tmp_path / "labels.json").write_text(json.dumps(said))
    with pytest.raises(wb.index.FeatureIndexError):
        other.import_labels(tmp_path / "labels.json")
    assert other.feature(2).label == ""


def test_labels_survive_a_kill(llama, corpus: Corpus, tmp_path: Path) -> None:
    index = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", tokens=100, **HOW)
    child = os.fork()
    if child == 0:
        index.label(1, "kept")
        index.star(2)
        with index._annotations._writing() as connection:
            connection.execute("UPDATE remarks SET label = 'half' WHERE feature = 1")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (index.feature(1).label, index.feature(2).starred) == ("kept", True)
    index.label(1, "new")
    assert [hit.index for hit in index.search(label="new")] == [1]
    assert index.search(label="half") == []


def test_labels_are_read_while_the_first_is_written(llama, corpus: Corpus, tmp_path: Path) -> None:
    index = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", tokens=100, **HOW)
    file = tmp_path / "i" / "people.sqlite"
    assert not file.exists()
    with index._annotations._writing() as connection:
        connection.execute("INSERT INTO remarks (feature, label) VALUES (1, 'first')")
        assert file.exists()  # and holds no tables, since nothing is committed
        other = wb.open_index(tmp_path / "i")
        for reader in (index, other):
            assert reader.feature(1).label == ""
            assert reader.search(label="first") == []
            reader.export_labels(tmp_path / "labels.json")
            assert json.loads((tmp_path / "labels.json").read_text())["features"] == {}
    assert [reader.feature(1).label for reader in (index, other)] == ["first", "first"]
    file.write_bytes(b"")  # what a kill just before the first label leaves
    assert wb.open_index(tmp_path / "i").feature(1).label == ""
    index.label(1, "again")
    assert wb.open_index(tmp_path / "i").feature(1).label == "again"


@pytest.mark.parametrize("ending", [".csv", ".TSV"])
def test_labels_travel_as_a_table(ending: str, llama, corpus: Corpus, tmp_path: Path) -> None:
    sae, file = make_sae(), tmp_path / f"labels{ending}"
    index = wb.build_index(llama, sae, corpus, tmp_path / "i", tokens=100, **HOW)
    index.label(3, 'größe, "big";\tor')
    index.note(3, "first\nsecond\r\n,third")
    index.label(5, "=1+1")
    index.star(5)
    index.export_labels(file)
    index.export_labels(file)  # replaces its own
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened, delimiter="," if ending == ".csv" else "\t"))
    assert [(row["feature"], row["label"], row["starred"]) for row in rows] == [
        ("3", 'größe, "big";\tor', "false"),
        ("5", "=1+1", "true"),
    ]
    other = wb.build_index(llama, sae, corpus, tmp_path / "j", tokens=100, **HOW)
    assert other.import_labels(file) == 2
    assert other.remarks() == index.remarks()
    foreign = wb.build_index(llama, make_sae(1), corpus, tmp_path / "k", tokens=100, **HOW)
    with pytest.raises(wb.index.FeatureIndexError, match="another dictionary"):
        foreign.import_labels(file)
    for mine in ("id,text\n1,mine\n", "feature,label\n1,mine\n".replace(",", "," if ending == ".csv" else "\t")):
        file.write_text(mine)
        with pytest.raises(wb.index.FeatureIndexError, match="holds something else"):
            index.export_labels(file)
        assert file.read_text() == mine
    with pytest.raises(wb.index.FeatureIndexError, match=r"as \.json, \.csv or \.tsv, not as 'labels\.xlsx'"):
        index.export_labels(tmp_path / "labels.xlsx")


def test_an_index_in_the_folder_of_its_dictionary_is_found(llama, corpus: Corpus, tmp_path: Path) -> None:
    sae = make_sae()
    sae.save(tmp_path / "d")
    built = wb.build_index(llama, sae, corpus, tmp_path / "d", tokens=100, **HOW)
    assert wb.open_index(tmp_path / "d").n_tokens == built.n_tokens
    assert wb.load_dictionary(tmp_path / "d").hash == sae.hash


def test_tables_of_labels_from_other_programs(llama, corpus: Corpus, tmp_path: Path) -> None:
    index = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", tokens=100, **HOW)
    index.note(1, "stays")
    index.star(2)
    file = tmp_path / "labels.csv"
    file.write_text("\ufeffFeature;Label;Starred\r\n1;a;b\r\n2;dogs;FALSE\r\n".replace("a;b", '"a;b";TRUE'), newline="")
    assert index.import_labels(file) == 2
    found = {number: (one.label, one.note, one.starred) for number, one in index.remarks().items()}
    assert found == {1: ("a;b", "stays", True), 2: ("dogs", "", False)}
    pd.DataFrame({"feature": [2], "label": ["cats"]}).to_csv(file)  # with the numbers of its rows
    assert index.import_labels(file) == 1
    assert index.feature(2).label == "cats"
    for text, sentence in {
        "label\ndogs\n": "its columns are feature and any of",
        "feature,lable\n1,dogs\n": "it has a column 'lable'",
        "feature,label\n1,a\n1,b\n": "line 3 has feature 1 again",
        "feature,label\nsae:1,a\n": "'sae:1' where the number",
        "feature,starred\n1,maybe\n": "'maybe' where true or false",
        "feature,label\n1,a\n99,b\n": "has no feature 99",
        "feature,label\n1,a,b\n": "line 2 has 3 fields",
        "feature,label,dictionary\n1,a,0123\n": r"another dictionary \(0123",
        "": "it has the columns none",
    }.items():
        file.write_text(text)
        with pytest.raises(wb.index.FeatureIndexError, match=sentence):
            index.import_labels(file)
    assert index.feature(1).label == "a;b"
