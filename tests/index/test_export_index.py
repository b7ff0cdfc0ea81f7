"""Indexes made from exports: what the export says is there, and what it does not say is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from index_models import World
from test_exports import IDS, lines, put

import workbench as wb
from workbench.index import (
    ExportedExample,
    ExportedFeature,
    FeatureExport,
    FeatureIndexError,
    build_from_export,
    export_features,
    open_export,
)


def test_an_index_of_an_export_says_what_the_export_says(tmp_path: Path) -> None:
    export = open_export(put(tmp_path / "export"))
    index = build_from_export(export, tmp_path / "index")
    assert repr(index).startswith("<FeatureIndex of Neuronpedia/gemma-2-2b/20-res: 2 of 11 features")
    assert [row["index"] for row in index.records()] == [7, 10]
    dog, boat = index.feature(7), index.feature(10)
    assert (dog.density, dog.highest, boat.density, boat.highest) == (0.25, 9.5, None, None)
    for card in (dog, boat):
        assert (card.active, card.mean, card.lowest) == (None, None, None)
        assert (card.histogram.counts, card.neighbours, card.cofiring, card.quantile_examples) == ([], [], [], [])
        json.dumps(card.to_dict(), allow_nan=False)
    assert [(one.token, one.score, one.id) for one in dog.promoted] == [(" dog", None, None), (" cat", None, None)]
    assert [(one.tokens, one.activations, one.peak) for one in dog.top_examples] == [
        (one.tokens, one.values, one.peak) for one in export.feature(7).examples
    ]
    assert [one.value for one in dog.top_examples] == [5.0, 2.0]
    assert [(one.text, one.source) for one in dog.labels] == [
        ("pets and dogs", "Neuronpedia, oai_token-act-pair, gpt-4o-mini"),
        ("animals", "Neuronpedia"),
    ]
    assert (dog.label, boat.label) == ("pets and dogs", "boats")


def test_an_index_of_an_export_is_searched(tmp_path: Path) -> None:
    index = build_from_export(open_export(put(tmp_path / "export")), tmp_path / "index")
    found = {name: [one.index for one in index.search(name)] for name in ("dog", "W30", "boat", "river")}
    assert found == {"dog": [7], "W30": [7], "boat": [10], "river": []}
    assert [one.matched_in for one in index.search("dogs")] == ["label"]
    assert [one.index for one in index.search(token=" cat")] == [7]
    assert [one.index for one in index.search(label="boats")] == [10]
    assert [(one.index, one.density) for one in index.search()] == [(7, 0.25), (10, None)]
    assert [one.index for one in index.search(density=(0.0, 0.9))] == [7]
    for how in ({"regex": "w3"}, {"token": 3}):
        with pytest.raises(FeatureIndexError, match="from an export holds no corpus"):
            index.search(**how)
    with pytest.raises(FeatureIndexError, match="holds no feature 8"):
        index.feature(8)
    with pytest.raises(FeatureIndexError, match="there is no 11"):
        index.feature(11)
    with pytest.raises(FeatureIndexError, match="open the index with"):
        index.fires_on("a dog")


def test_what_people_write_stays(tmp_path: Path) -> None:
    export = open_export(put(tmp_path / "export"))
    index = build_from_export(export, tmp_path / "index")
    index.label(7, "mine")
    index.note(10, "seen")
    assert [one.index for one in index.search("mine")] == [7]
    lines(tmp_path / "export" / "explanations" / "batch-0.jsonl", IDS | {"index": "7", "description": "other words"})
    index = build_from_export(open_export(tmp_path / "export"), tmp_path / "index")
    assert (index.feature(7).label, index.feature(10).label, index.feature(10).note) == ("mine", "", "seen")
    assert [one.text for one in index.feature(7).labels] == ["other words"]
    index.label(7, "")
    assert index.feature(7).label == "other words"
    index.export_labels(tmp_path / "labels.csv")
    assert "other words" in (tmp_path / "labels.csv").read_text()
    (tmp_path / "export" / "activations" / "batch-1.jsonl").unlink()
    with pytest.raises(FeatureIndexError, match="holds labels for another dictionary"):
        build_from_export(open_export(tmp_path / "export"), tmp_path / "index")


def test_an_index_through_an_export_has_the_same_examples(sae_world: World, llama, tmp_path: Path) -> None:
    """What an index of a corpus writes as an export reads as the same tokens, values and scores."""
    first = sae_world.index
    for form, layer in (("neuronpedia", None), ("circuit-tracer", 1)):
        export_features(first, tmp_path / form, form=form, model_id="tiny", source_set="res")
        index = build_from_export(open_export(tmp_path / form, layer=layer), tmp_path / f"index {form}")
        assert index.n_features == first.n_features
        for feature in range(first.n_features):
            own, other = index.feature(feature), first.feature(feature)
            assert (own.density, own.highest) == pytest.approx((other.density, other.highest))
            tops = {(round(one.value, 3), one.tokens[one.peak]) for one in other.top_examples}
            assert own.top_examples or not tops
            for one in own.top_examples[:10]:
                value = max(value for value in one.activations if value is not None)
                assert one.value == value
            if form == "neuronpedia":
                assert [one.score for one in own.promoted] == pytest.approx([one.score for one in other.promoted])
            assert [one.token for one in own.promoted] == [one.token for one in other.promoted]
    for how in ({"model": llama}, {"dictionary": sae_world.dictionary}):
        with pytest.raises(FeatureIndexError, match="was made from an export"):
            wb.open_index(tmp_path / "index neuronpedia", **how)
    again = wb.open_index(tmp_path / "index neuronpedia")
    assert again.search(limit=None) == index.search(limit=None)[:0] + again.search(limit=None)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    def export(**fields) -> FeatureExport:
        return FeatureExport("circuit-tracer", "", "a", "", {fields["index"]: ExportedFeature(**fields)})

    for wrong, words in (
        (FeatureExport("circuit-tracer", "", "a", "", {}), "holds no features"),
        (export(index=1 << 21), "take.* apart by open_export"),
        (export(index=3, examples=[ExportedExample(["a"], [1e6])]), "value of feature 3 is above 65,504"),
        (export(index=3, examples=[ExportedExample(["a"], [float("nan")])]), "value of feature 3 is above 65,504"),
        (export(index=3, examples=[ExportedExample(["a"], [])]), "has not one value for each"),
    ):
        with pytest.raises(FeatureIndexError, match=words):
            build_from_export(wrong, tmp_path / "index")
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(FeatureIndexError, match="is no index"):
        build_from_export(export(index=3), tmp_path / "other")
    only = build_from_export(export(index=3, labels=[]), tmp_path / "index")
    assert only.feature(3).top_examples == []
    note = tmp_path / "index" / "data" / "index.json"
    content = note.read_text()
    for old, new, words in (
        ('"format": 2', '"format": 1', "of a corpus or of an export"),
        ("tracer/a", "b", "altered"),
    ):
        note.write_text(content.replace(old, new))
        with pytest.raises(FeatureIndexError, match=words):
            wb.open_index(tmp_path / "index")


def test_single_files_of_an_export_are_read(tmp_path: Path) -> None:
    put(tmp_path / "export")
    one = open_export(tmp_path / "export" / "explanations" / "batch-0.jsonl")
    assert [it.text for it in one.feature(7).labels] == ["pets and dogs", "animals"]
    two = open_export(tmp_path / "export" / "activations" / "batch-0.jsonl.gz")
    assert two.feature(7).examples[0].values == [0.0, 2.0]
    three = open_export(tmp_path / "export" / "features" / "batch-0.jsonl.gz")
    assert (three.feature(7).density, three.hook_point) == (0.25, "a.b")
    file = tmp_path / "26.json"
    file.write_text(json.dumps({"index": 26, "examples_quantiles": [], "top_logits": ["a"]}))
    assert open_export(file).feature(26).promoted == ["a"]
    assert open_export(file, layer=1).feature(5).promoted == ["a"]
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(FeatureIndexError, match="no file of an export"):
        open_export(tmp_path / "x.txt")


def test_halves_of_characters_are_refused(tmp_path: Path) -> None:
    feature = ExportedFeature(0, examples=[ExportedExample(["\ud83d", "b"], [1.0, 2.0])])
    with pytest.raises(FeatureIndexError, match="halves of characters"):
        build_from_export(FeatureExport("s", "m", "n", "h", {0: feature}), tmp_path / "index")
