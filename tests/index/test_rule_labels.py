"""Labels by rule: planted triggers are named, scores are those of a loop over the other half, noise stays unnamed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_models import HOW, World, make_sae

import workbench as wb
from workbench.corpus import Corpus
from workbench.index.entries import Entries, EntriesWriter
from workbench.index.feature_label import FeatureLabel
from workbench.index.rules.explaining import Explainer, explain_features, halves
from workbench.index.rules.rule import Condition, Rule
from workbench.index.rules.surroundings import NEAR, Surroundings
from workbench.index.tokens import TokenTable

WORDS = ("dog", "cat", "house", "river", "12", "7", "The", "New", "York", ",", ".", "and")


@pytest.fixture(scope="module")
def table(llama, tmp_path_factory) -> TokenTable:
    """The tokens of texts of random words."""
    chance = np.random.default_rng(5)
    texts = [" ".join(chance.choice(WORDS, 60).tolist()) for _ in range(60)]
    index = wb.build_index(llama, make_sae(), Corpus(texts), tmp_path_factory.mktemp("r") / "i", context=128, batch=8)
    return index.tokens


def planted(table: TokenTable, folder: Path, masks: list[np.ndarray], keep: int | None = None) -> Entries:
    """Entries of features that are active where masks say it, with strong values."""
    chance = np.random.default_rng(0)
    with EntriesWriter(folder, table, keep, signed=False) as writer:
        for mask in masks:
            rows = np.flatnonzero(mask)
            values = np.sort(chance.uniform(0.6, 1, len(rows)))[::-1].astype(np.float16)
            writer.add(chance.permutation(rows), values)
    return Entries(folder, len(table), np.array([mask.sum() for mask in masks]), keep, signed=False)


def explainer(table: TokenTable, folder: Path, masks: list[np.ndarray], keep: int | None = None) -> Explainer:
    return Explainer(table, planted(table, folder, masks, keep), np.full((len(masks), 3), -1), 0)


def triggers(table: TokenTable) -> dict[str, np.ndarray]:
    """Where planted features are active, by the label that each has to get; written as a loop over the texts."""
    pieces = [text.strip().lower() for text in table.strings(table.ids)]
    runs = np.searchsorted(table.runs[:, 0], np.arange(len(table)), "right")

    def where(test) -> np.ndarray:
        out = np.zeros(len(pieces), bool)
        for row in range(len(pieces)):
            before = pieces[row - 1] if row and runs[row - 1] == runs[row] else None
            behind = pieces[row + 1] if row + 1 < len(pieces) and runs[row + 1] == runs[row] else None
            out[row] = test(pieces[row], before, behind)
        return out

    return {
        "a comma": where(lambda word, *_: word == ","),
        "after “and”": where(lambda word, before, _: before == "and"),
        "before “cat”": where(lambda word, _, behind: behind == "cat"),
        "the words “dog”, “cat”": where(lambda word, *_: word in ("dog", "cat")),
        "the word “dog” and after “the”": where(lambda word, before, _: word == "dog" and before == "the"),
    }


def says(label: FeatureLabel | None) -> set[str]:
    """The words that a label names."""
    assert label is not None
    return {value.strip().lower() for one in Rule.from_json(label.rule).conditions for value in one.values}


def test_planted_triggers_are_named(table: TokenTable, tmp_path: Path) -> None:
    wanted = triggers(table)
    found = explainer(table, tmp_path, [*wanted.values(), np.zeros(len(table), bool)])
    labels = [found.of(number) for number in range(len(wanted) + 1)]
    assert labels.pop() == ("dead", None)
    assert [state for state, _ in labels] == ["labelled"] * len(wanted)
    named = [says(label) for _, label in labels]
    assert named[0] in ({","}, {"a comma"})
    assert (named[1], named[2], named[4]) == ({"and"}, {"cat"}, {"dog", "the"})
    assert named[3] == {"dog", "cat"}
    assert all(label and label.score and label.score > 0.98 for _, label in labels)


@pytest.mark.parametrize("keep", [None, 60])
def test_a_score_is_that_of_a_loop_over_the_other_half(keep: int | None, table: TokenTable, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    mask = triggers(table)["after “and”"] & (chance.random(len(table)) < 0.8) | (chance.random(len(table)) < 0.02)
    one = explainer(table, tmp_path, [mask], keep)
    _, label = one.of(0)
    assert label is not None
    assert None not in (label.score, label.low, label.high)
    other = ~one.halves.chosen
    holds = Rule.from_json(label.rule).mask(one.around)[other]
    yes, no = holds[mask[other]], holds[~mask[other]]
    pairs = (yes[:, None] > no) + 0.5 * (yes[:, None] == no)  # the area, by its definition
    assert label.score == pytest.approx(pairs.mean(), abs=1e-9 if keep is None else 0.12)
    assert label.low < label.score < label.high


def test_shuffled_activations_fall_to_chance(table: TokenTable, tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    masks = [chance.permutation(mask) for mask in list(triggers(table).values())[:4] * 15]
    entries = planted(table, tmp_path, masks)
    statistics = {"promoted": np.full((len(masks), 3), -1), "density": np.array([mask.mean() for mask in masks])}
    found = explain_features(table, entries, statistics, seed=0, progress=None, stops=lambda: False)
    assert found is not None
    assert len(found.labels) <= 0.1 * len(masks)  # 2.5% of the features by the interval
    assert all(label.score is not None and label.score < 0.62 for label in found.labels.values())


def test_places_and_whole_masks_agree(table: TokenTable) -> None:
    around = Surroundings(table)
    rows = np.random.default_rng(3).choice(len(table), 300)
    some = around.at(rows)
    for slot, values in {
        "near": ("dog", "and"),
        "before": ("cat",),
        "class": ("before a number", "the first token of a text"),
        "next token": (" cat",),
    }.items():
        assert np.array_equal(some.mask(slot, values), around.mask(slot, values)[rows]), slot
    words = around.slots["word"]
    run = np.searchsorted(table.runs[:, 0], np.arange(len(table)), "right")
    for row in rows[:100].tolist():
        near = [one for one in range(max(0, row - NEAR), row) if run[one] == run[row]]
        assert around.mask("near", ("dog",))[row] == any(words.texts[words.codes[one]] == "dog" for one in near)


def test_labels_are_kept_found_and_stand_below_a_persons(llama, corpus: Corpus, tmp_path: Path) -> None:
    index = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", **HOW)
    found = index.explain()
    assert found.labels
    feature, label = next(iter(found.labels.items()))
    again = wb.open_index(tmp_path / "i")
    assert again.names() == index.names() == dict(found.labels)
    assert again.feature(feature).found == [label]
    assert again.feature(feature).label == label.text
    assert again.remarks() == {}
    assert feature in [hit.index for hit in again.search(label=label.text, limit=None)]
    index.label(feature, "mine")
    assert again.names()[feature].source == "a person"
    index.explain(seed=1)
    assert again.feature(feature).label == "mine"
    again.export_labels(tmp_path / "labels.json")
    assert set(again.remarks()) == {feature}
    model = FeatureLabel("dogs <b>", "a model", score=0.99, low=0.9, high=1.0)
    index.add_labels("a model", {feature: model})
    assert [one.source for one in again.labels(feature)][:2] == ["a person", "a model"]
    rebuilt = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", tokens=300, **HOW)
    assert rebuilt.labels(feature)[:2] == again.labels(feature)[:2]
    with pytest.raises(wb.index.FeatureIndexError, match="under one source"):
        index.add_labels("rule", {feature: model})
    with pytest.raises(wb.index.FeatureIndexError, match="cancelled"):
        index.explain(cancel=lambda: True)
    file = tmp_path / "i" / "labels.parquet"
    whole = pq.read_table(file)
    pq.write_table(whole.set_column(1, "text", pa.array(["x"] * len(whole))), file)
    with pytest.raises(wb.index.FeatureIndexError, match="was altered"):
        wb.open_index(tmp_path / "i")


def test_found_labels_survive_a_kill(llama, corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    index = wb.build_index(llama, make_sae(), corpus, tmp_path / "i", tokens=300, **HOW)
    index.add_labels("a", {1: FeatureLabel("first", "a")})
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("pyarrow.parquet.write_table", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        index.add_labels("a", {1: FeatureLabel("second", "a")})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert wb.open_index(tmp_path / "i").labels(1) == [FeatureLabel("first", "a")]
    index.add_labels("a", {1: FeatureLabel("third", "a")})
    assert wb.open_index(tmp_path / "i").names()[1].text == "third"


def test_indexes_that_cannot_be_explained_say_so(sae_world: World, tmp_path: Path) -> None:
    features = {3: wb.index.ExportedFeature(3, [wb.index.ExportedLabel("dogs", "me")], promoted=[" cat"])}
    export = wb.index.build_from_export(
        wb.index.FeatureExport("Neuronpedia", "m", "6-res", "", features), tmp_path / "e"
    )
    with pytest.raises(wb.index.FeatureIndexError, match="holds no corpus"):
        export.explain()
    assert export.names()[3] == FeatureLabel("dogs", "me")
    one = wb.build_index(sae_world.model, make_sae(), Corpus(["The dog ran."]), tmp_path / "one", **HOW)
    with pytest.raises(wb.index.FeatureIndexError, match="on several"):
        one.explain()


def test_rules_read_as_plain_words() -> None:
    both = Rule((Condition("word", ("dog",)), Condition("before", ("new", "old"))))
    assert str(both) == "the word “dog” and after “new”, “old”"
    assert Rule.from_json(json.dumps(both.to_json())) == both
    assert str(Condition("token", tuple("abcdefgh"))) == "the tokens “a”, “b”, “c”, “d”, “e”, “f” or 2 more"
    with pytest.raises(wb.index.FeatureIndexError):
        Rule.from_json('{"join": "xor", "conditions": []}')


def test_texts_of_the_same_tokens_are_in_one_half(llama, tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    texts = [" ".join(chance.choice(WORDS, 12).tolist()) for _ in range(9)]
    index = wb.build_index(llama, make_sae(), Corpus(texts * 3), tmp_path / "i", context=64, batch=8)
    parts = halves(index.tokens, 0)
    text_of, _ = index.tokens.places(np.arange(index.n_tokens))
    sides: dict[bytes, set[bool]] = {}
    for text in np.unique(text_of):
        rows = text_of == text
        sides.setdefault(np.asarray(index.tokens.ids)[rows].tobytes(), set()).update(parts.chosen[rows].tolist())
        assert len({*parts.text_of[rows].tolist()}) == 1
    assert len(sides) == len({*parts.text_of.tolist()}) == 9
    assert all(len(side) == 1 for side in sides.values())
    assert sum(parts.counts) == index.n_tokens
    assert min(parts.counts) > 0


@pytest.mark.parametrize(
    "label",
    [
        FeatureLabel("", "big"),
        FeatureLabel("half \ud800", "big"),
        FeatureLabel("dogs", "big", score=float("nan")),
        FeatureLabel("dogs", "big", score=7.0),
        FeatureLabel("dogs", "big", score=0.7, low=float("-inf")),
    ],
)
def test_labels_that_say_nothing_are_refused(sae_world: World, tmp_path: Path, label: FeatureLabel) -> None:
    index = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", **HOW)
    with pytest.raises(wb.index.FeatureIndexError, match="label of feature 0"):
        index.add_labels("big", {0: label})
    assert not index.names()
    assert "0.70" in FeatureLabel("dogs", "big", score=0.7).about
