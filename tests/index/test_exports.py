"""Exports of features: Neuronpedia's and circuit-tracer's, read and written.

What Neuronpedia's files hold is told by lines written here by hand, as its scripts write them. With
WORKBENCH_NEURONPEDIA_MODELS, the folder of its `db_models`, its own classes open what we write, and with
WORKBENCH_CIRCUIT_TRACER_PYTHON circuit-tracer's.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from index_models import World

import workbench as wb
from workbench.index import FeatureIndexError, add_labels, export_features, open_export

MODELS = os.environ.get("WORKBENCH_NEURONPEDIA_MODELS")
PEER = os.environ.get("WORKBENCH_CIRCUIT_TRACER_PYTHON")
IDS = {"modelId": "gemma-2-2b", "layer": "20-res"}


def lines(file: Path, *rows: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)


def read_rows(file: Path) -> list[Any]:
    return [json.loads(row) for row in gzip.decompress(file.read_bytes()).splitlines()]


def put(folder: Path) -> Path:
    """An export with two features of which one has an example each in two files."""
    facts = {
        "frac_nonzero": 0.25,
        "maxActApprox": 9.5,
        "pos_str": [" dog", " cat"],
        "neg_str": ["x"],
        "hookName": "a.b",
    }
    lines(folder / "features" / "batch-0.jsonl.gz", IDS | {"index": "7"} | facts, IDS | {"index": 10, "vector": []})
    texts = [f"w{place}" for place in range(50)]
    values = [0.0] * 50
    lines(
        folder / "activations" / "batch-0.jsonl.gz",
        IDS | {"index": "7", "tokens": ["a", " dog"], "values": [0.0, 2.0], "maxValue": 2.0},
    )
    lines(
        folder / "activations" / "batch-1.jsonl",
        IDS | {"index": "7", "tokens": texts, "values": [*values[:30], 5.0, *values[31:]]},
    )
    said = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"}
    lines(
        folder / "explanations" / "batch-0.jsonl",
        IDS | {"index": "7", "description": " pets and dogs"} | said,
        IDS | {"index": "7", "description": "animals"},
        IDS | {"index": "10", "description": "boats", "typeName": None},
    )
    return folder


def test_an_export_of_neuronpedia_is_read(tmp_path: Path) -> None:
    export = open_export(put(tmp_path))
    assert (export.source, export.model, export.name, export.hook_point) == (
        "Neuronpedia",
        "gemma-2-2b",
        "20-res",
        "a.b",
    )
    dog, boat = export.feature(7), export.feature(10)
    assert (dog.density, dog.highest, dog.promoted, dog.suppressed) == (0.25, 9.5, [" dog", " cat"], ["x"])
    assert [(one.text, one.source) for one in dog.labels] == [
        ("pets and dogs", "Neuronpedia, oai_token-act-pair, gpt-4o-mini"),
        ("animals", "Neuronpedia"),
    ]
    high, low = dog.examples
    assert (high.tokens, high.values[high.peak], high.peak) == ([f"w{place}" for place in range(10, 41)], 5.0, 20)
    assert (low.tokens, low.values) == (["a", " dog"], [0.0, 2.0])
    assert (boat.density, boat.highest, boat.examples, boat.promoted) == (None, None, [], [])
    assert export.search("DOG") == [7]
    assert export.search("w30") == [7]
    assert export.search("boat") == [10]
    assert export.absent()[0].startswith("a corpus")
    assert len(open_export(tmp_path, examples=1).feature(7).examples) == 1
    for folder, lacks in (("explanations", "labels"), ("activations", "examples"), ("features", "densities")):
        for file in (tmp_path / folder).iterdir():
            file.unlink()
        if folder != "features":
            assert lacks in open_export(tmp_path).absent()
    with pytest.raises(FeatureIndexError, match="holds no features"):
        open_export(tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (IDS | {"index": "7", "tokens": ["a"], "values": [1.0, 2.0]}, "1 token and 2 values"),
        (IDS | {"index": "7", "tokens": ["a"], "values": ["b"]}, "Line 1 of .* is not what Neuronpedia exports"),
        (IDS | {"index": "x", "tokens": ["a"], "values": [1.0]}, "index is 'x', which is no number"),
        (IDS | {"index": -1, "tokens": ["a"], "values": [1.0]}, "which is no number"),
        (IDS | {"layer": "3-res", "index": 1, "tokens": ["a"], "values": [1.0]}, "several dictionaries"),
        ([], "Line 1 of"),
    ],
)
def test_what_is_wrong_with_an_export_is_said(tmp_path: Path, row: Any, words: str) -> None:
    put(tmp_path)
    lines(tmp_path / "activations" / "batch-2.jsonl", row)
    with pytest.raises(FeatureIndexError, match=words) as caught:
        open_export(tmp_path)
    assert "\n" not in str(caught.value)


def test_packed_files_are_not_trusted(tmp_path: Path) -> None:
    put(tmp_path)
    file = tmp_path / "features" / "batch-9.jsonl.gz"
    for content in (b"\n" * 10**7, b"[" * 9 * 2**20):
        file.write_bytes(gzip.compress(content, 9))
        with pytest.raises(FeatureIndexError):
            open_export(tmp_path)
    file.write_bytes(gzip.compress(json.dumps(IDS | {"index": 1}).encode())[:-6])
    with pytest.raises(FeatureIndexError, match="can't be read"):
        open_export(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(FeatureIndexError, match="holds no export"):
        open_export(tmp_path / "none")


def test_an_index_is_written_as_neuronpedia_takes_it(sae_world: World, tmp_path: Path) -> None:
    index = wb.open_index(sae_world.index.path)
    index.label(3, "rivers")
    export_features(index, tmp_path / "np", model_id="tiny", source_set="res", creator="me")
    back = open_export(tmp_path / "np")
    assert (back.model, back.name, len(back), back.hook_point) == ("tiny", "1-res", 24, "blocks.1.hook_resid_post")
    codes = sae_world.codes
    for feature in range(24):
        one = back.feature(feature)
        assert one.density == pytest.approx(float((codes[:, feature] != 0).mean()))
        assert one.highest == pytest.approx(float(codes[:, feature].max()))
        assert [max(example.values) for example in one.examples] == sorted(
            (max(example.values) for example in one.examples), reverse=True
        )
        tops = index.feature(feature).top_examples
        assert {example.tokens[example.peak] for example in one.examples} <= {
            token for top in tops for token, value in zip(top.tokens, top.activations, strict=True) if value
        }
    assert [one.text for one in back.feature(3).labels] == ["rivers"]
    if MODELS:
        for folder, name in (("features", "Feature"), ("activations", "Activation"), ("explanations", "Explanation")):
            for row in read_rows(tmp_path / "np" / folder / "batch-0.jsonl.gz"):
                theirs(name.lower(), name)(**row)
        for file, module, name in (
            ("model", "model", "Model"),
            ("source", "source", "Source"),
            ("sourceset", "source_set", "SourceSet"),
            ("release", "source_release", "SourceRelease"),
        ):
            theirs(module, name)(**json.loads((tmp_path / "np" / f"{file}.jsonl").read_text()))
    before = (tmp_path / "np" / "features" / "batch-0.jsonl.gz").read_bytes()
    export_features(index, tmp_path / "np", model_id="tiny", source_set="res", creator="me")
    assert (tmp_path / "np" / "features" / "batch-0.jsonl.gz").read_bytes() == before
    (tmp_path / "np" / "mine.txt").write_text("mine")
    with pytest.raises(FeatureIndexError):
        export_features(index, tmp_path / "np", model_id="tiny", source_set="res")
    assert (tmp_path / "np" / "mine.txt").exists()
    index.label(3, "")


def test_a_dictionary_of_several_layers_is_of_no_layer_there(sae_world: World, tmp_path: Path) -> None:
    index = wb.open_index(sae_world.index.path)
    index.about["dictionary"]["reads"] = "blocks.0.mlp.hook_in + blocks.1.mlp.hook_in"
    for form in ("neuronpedia", "circuit-tracer"):
        with pytest.raises(FeatureIndexError, match="is no single layer"):
            export_features(index, tmp_path / form, form=form, model_id="tiny", source_set="clt")


def theirs(module: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"neuronpedia_{module}", Path(str(MODELS)) / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


def test_an_index_is_written_as_circuit_tracer_takes_it(sae_world: World, tmp_path: Path) -> None:
    index = sae_world.index
    export_features(index, tmp_path / "ct", form="circuit-tracer", model_id="tiny", source_set="res")
    back = open_export(tmp_path / "ct", layer=1)
    assert (back.source, back.name, len(back)) == ("circuit-tracer", "res", 24)
    card = index.feature(5)
    assert back.feature(5).density == pytest.approx(card.density)
    assert back.feature(5).promoted == [one.token for one in card.promoted]
    assert max(back.feature(5).examples[0].values) == pytest.approx(card.highest)
    assert sorted(open_export(tmp_path / "ct").features) == sorted((1 + i) * (2 + i) // 2 + i for i in range(24))
    with pytest.raises(FeatureIndexError, match="no feature of layer 9"):
        open_export(tmp_path / "ct", layer=9)
    if PEER:
        code = (
            "import sys, json, pathlib; from circuit_tracer.frontend.feature_models import Model; "
            "[Model.model_validate_json(one.read_text()) for one in pathlib.Path(sys.argv[1]).iterdir()]"
        )
        subprocess.run([PEER, "-c", code, str(tmp_path / "ct")], check=True)


def test_labels_come_with_their_source(sae_world: World, tmp_path: Path) -> None:
    index = wb.open_index(sae_world.index.path)
    index.label(1, "mine")
    export_features(index, tmp_path / "np", model_id="tiny", source_set="res")
    for name in ("a", "b"):
        said = {"modelId": "tiny", "layer": "1-res", "typeName": "auto", "explanationModelName": name}
        rows = [said | {"index": feature, "description": f"label {feature}"} for feature in (1, 4)]
        lines(tmp_path / "np" / "explanations" / f"batch-{name}.jsonl", *rows)
    assert add_labels(index, open_export(tmp_path / "np")) == 1
    assert (index.feature(1).label, index.feature(1).note) == ("mine", "")
    assert index.feature(4).label == "label 4"
    assert index.feature(4).note == "Label: Neuronpedia, auto, a, from tiny 1-res"
    assert add_labels(index, open_export(tmp_path / "np")) == 0
    rows = read_rows(tmp_path / "np" / "features" / "batch-0.jsonl.gz")
    shifted = [row | {"pos_str": [f"{token}?" for token in row["pos_str"]]} for row in rows]
    for changed, words in (
        ([row | {"index": str(int(row["index"]) + 1)} for row in rows], "holds feature 24 and .* has 24"),
        ([row | {"hookName": "blocks.0.hook_resid_post"} for row in rows], "is of 'blocks.0.hook_resid_post'"),
        (shifted, "promote other tokens"),
    ):
        lines(tmp_path / "np" / "features" / "batch-0.jsonl.gz", *changed)
        with pytest.raises(FeatureIndexError, match=words):
            add_labels(index, open_export(tmp_path / "np"))
    for feature in (1, 4):
        index.label(feature, "")
        index.note(feature, "")
