"""The feature index: every number equals a plain loop over dense codes; nothing is lost when it is killed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import workbench as wb
from workbench.corpus import Corpus
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.jumprelu import JumpReLUSAE
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.harvest import Activations, Harvest
from workbench.index.cofiring import SAMPLE
from workbench.index.feature_index import FeatureIndex
from workbench.index.selection import AFTER, BANDS, BEFORE, LEAST_KEPT, LOWEST, TOP, kept, shown
from workbench.index.sorting import SortedChunks, dense_blocks
from workbench.index.spool import DenseSpool, SparseSpool
from workbench.interventions.features import dictionary_of

POINT = "blocks.1.hook_resid_post"
ANIMALS = ("dog", "cat", "mouse", "boat 🚤", "bird", "naïve horse")
TEXTS = [
    f"Story {number}. The {ANIMALS[number % 6]} ran to the river. " * (number % 5 + 1) + f"End {number % 7}!"
    for number in range(40)
]
HOW = {"context": 48, "batch": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Files are compared byte by byte, and sums are added in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(TEXTS, "forty")


def make_sae(seed: int = 0) -> TopKSAE:
    return TopKSAE(32, 24, 4, hook_point=POINT, name="tiny-sae", seed=seed)


class World:
    """An index, and the same codes as one dense array."""

    def __init__(self, index: FeatureIndex, model: wb.model.LanguageModel, dictionary, corpus: Corpus):
        self.index, self.model, self.dictionary, self.corpus = index, model, dictionary, corpus
        self.seen: Activations = Harvest(model, corpus, dictionary.reads, **HOW).collect()
        with torch.no_grad():
            dense = dictionary.encode(self.seen.values[dictionary.reads]).dense()
        self.codes = dense.numpy().astype(np.float16)  # [n_tokens, n_features]


@pytest.fixture(scope="module")
def sae_world(llama, corpus: Corpus, tmp_path_factory) -> World:
    sae = make_sae()
    return World(wb.build_index(llama, sae, corpus, tmp_path_factory.mktemp("i") / "sae", **HOW), llama, sae, corpus)


@pytest.fixture(scope="module")
def neuron_world(llama, corpus: Corpus, tmp_path_factory) -> World:
    path = tmp_path_factory.mktemp("i") / "neurons"
    index = wb.build_index(llama, "neurons.1.gate", corpus, path, keep=90, **HOW)
    return World(index, llama, dictionary_of(llama, "neurons.1.gate:0"), corpus)


def ordered(column: np.ndarray) -> np.ndarray:
    """Rows where a feature is active, highest value first, earlier tokens first among equals."""
    rows = np.flatnonzero(column)
    return np.array(sorted(rows.tolist(), key=lambda row: (-column[row], row)), int)


def test_entries_are_those_of_a_plain_loop(sae_world: World) -> None:
    index = sae_world.index
    assert index.n_tokens == len(sae_world.codes)
    for feature in range(index.n_features):
        column = sae_world.codes[:, feature]
        rows, values = index.entries.of(feature)
        wanted = ordered(column)
        assert rows.tolist() == wanted.tolist()
        assert np.array_equal(values, column[wanted])
        assert np.array_equal(index.top(feature, 7)[0], wanted[:7])
        every = np.arange(index.n_tokens)
        assert np.array_equal(index.entries.at(feature, every), column.astype(np.float32))


@pytest.mark.parametrize("which", ["sae_world", "neuron_world"])
def test_statistics(which: str, request) -> None:
    world: World = request.getfixturevalue(which)
    for feature in range(world.index.n_features):
        column = world.codes[:, feature].astype(np.float64)
        active = column[column != 0]
        card = world.index.feature(feature)
        assert card.active == len(active)
        assert card.density == pytest.approx(len(active) / len(column))
        if len(active) == 0:
            assert card.top_examples == []
            assert sum(card.histogram.counts) == 0
            continue
        assert card.mean == pytest.approx(active.mean(), rel=1e-5)
        assert (card.highest, card.lowest) == (active.max(), active.min())
        counts, edges = np.histogram(active, 32, (min(active.min(), 0), max(active.max(), 0)))
        assert card.histogram.counts == counts.tolist()
        assert card.histogram.edges == pytest.approx(edges.tolist())


def context(world: World, row: int) -> list[int]:
    """Rows shown around a row: its text's, as far as they were read one after another."""
    texts, positions = world.seen.texts.tolist(), world.seen.positions.tolist()
    begin = end = row
    while begin > max(row - BEFORE, 0) and texts[begin - 1] == texts[row] and positions[begin - 1] < positions[begin]:
        begin -= 1
    last = min(row + AFTER, len(texts) - 1)
    while end < last and texts[end + 1] == texts[row] and positions[end + 1] > positions[end]:
        end += 1
    return list(range(begin, end + 1))


@pytest.mark.parametrize("which", ["sae_world", "neuron_world"])
def test_examples_in_context(which: str, request) -> None:
    world: World = request.getfixturevalue(which)
    for feature in range(0, world.index.n_features, 3):
        card = world.index.feature(feature)
        column = world.codes[:, feature]
        ranked = ordered(column)
        assert [example.row for example in card.top_examples] == ranked[:TOP].tolist()
        for example in [*card.top_examples, *card.quantile_examples, *card.lowest_examples]:
            rows = context(world, example.row)
            assert example.tokens == world.model.token_texts(world.seen.tokens[rows])
            assert example.activations == column[rows].astype(np.float32).tolist()
            assert rows[example.peak] == example.row
            assert example.value == column[example.row]
            assert example.text == world.seen.texts[example.row]
            assert example.position == world.seen.positions[example.row]
        if world.index.entries.signed:
            assert [example.row for example in card.lowest_examples] == ranked[::-1][:LOWEST].tolist()
        place = {row: rank for rank, row in enumerate(ranked.tolist())}
        for example in card.quantile_examples:
            quantile = 1 - (place[example.row] + 0.5) / len(ranked)
            slack = 0 if world.index.entries.keep is None else 0.05
            assert example.band[0] - slack <= quantile <= example.band[1] + slack
        json.dumps(card.to_dict(), allow_nan=False)


def test_promoted_tokens_and_neighbours(sae_world: World, neuron_world: World, corpus: Corpus, tmp_path: Path) -> None:
    model = sae_world.model
    head = model.network.unembedding()
    gain, _ = model.network.final_norm()
    transcoder = TopKTranscoder(32, 9, 3, d_out=48, reads=POINT, writes="blocks.1.mlp.hook_post")
    post = wb.build_index(model, transcoder, corpus, tmp_path / "post", **HOW)
    hidden = TopKSAE(32, 9, 3, hook_point="blocks.1.attn.hook_z")
    assert wb.build_index(model, hidden, corpus, tmp_path / "z", **HOW).feature(0).promoted == []
    down = model.network.neuron_weights(1, "down")
    for index, vectors, directions in (
        (sae_world.index, sae_world.dictionary.W_dec * gain, sae_world.dictionary.W_dec),
        (post, transcoder.W_dec @ down * gain, transcoder.W_dec),
        (neuron_world.index, *[model.network.neuron_weights(1, "gate")] * 2),
    ):
        cosines = torch.nn.functional.cosine_similarity(directions[:, None], directions[None], dim=-1)
        for feature in range(index.n_features):
            card = index.feature(feature)
            scores = head @ vectors[feature]
            best = scores.topk(10)
            assert [token.id for token in card.promoted] == best.indices.tolist()
            assert [token.score for token in card.promoted] == pytest.approx(best.values.tolist(), rel=1e-4)
            assert [token.token for token in card.promoted] == model.token_texts(best.indices)
            assert [token.id for token in card.suppressed] == scores.topk(10, largest=False).indices.tolist()
            cosines[feature, feature] = -2
            near = cosines[feature].topk(8)
            assert [other.index for other in card.neighbours] == near.indices.tolist()
            assert [other.cosine for other in card.neighbours] == pytest.approx(near.values.tolist(), abs=1e-5)


def test_cofiring(sae_world: World, neuron_world: World) -> None:
    active = sae_world.codes != 0
    share = active.mean(0)
    for feature in range(sae_world.index.n_features):
        wanted = []
        for other in range(active.shape[1]):
            both = (active[:, feature] & active[:, other]).sum()
            if other != feature and both >= 2:
                given = both / active[:, feature].sum()
                pmi = math.log(given / share[other])
                if pmi > 0:
                    wanted.append((given * pmi, other, given, pmi))
        wanted = sorted(wanted, reverse=True)[:8]
        found = sae_world.index.feature(feature).cofiring
        if active[:, feature].sum() > SAMPLE:  # then they are estimates
            for one in found:
                given = (active[:, feature] & active[:, one.index]).sum() / active[:, feature].sum()
                assert one.share == pytest.approx(given, abs=0.04)
            continue
        assert [one.share * one.pmi for one in found] == pytest.approx([one[0] for one in wanted], rel=1e-4)
        for one in found:
            assert one.share == pytest.approx(
                (active[:, feature] & active[:, one.index]).sum() / active[:, feature].sum()
            )
    assert neuron_world.index.feature(0).cofiring == []


def test_an_index_that_keeps_less(sae_world: World, tmp_path: Path) -> None:
    small = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", keep=60, **HOW)
    assert max(np.diff(small.entries.offsets)) == 60
    fuller = 0
    for feature in range(small.n_features):
        ranked = ordered(sae_world.codes[:, feature])
        rows, _ = small.entries.of(feature)
        assert rows[:30].tolist() == ranked[:30].tolist()
        assert set(rows.tolist()) <= set(ranked.tolist())
        one, other = small.feature(feature), sae_world.index.feature(feature)
        assert one.top_examples == other.top_examples
        assert (one.density, one.histogram, one.cofiring) == (other.density, other.histogram, other.cofiring)
        if len(ranked) > 60:
            fuller += 1
            beyond = small.examples(feature, n=5, start=22)
            assert any(None in example.activations for example in beyond)
            for wrong in ({"n": -3}, {"start": -2}):
                with pytest.raises(wb.index.FeatureIndexError, match="whole numbers from 0"):
                    small.examples(feature, **wrong)
            assert all(example.activations[example.peak] == example.value for example in beyond)
    assert fuller > 3


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 59, 60, 61, 62, 100, 999, 12345])
def test_what_is_kept(count: int, signed: bool) -> None:
    for keep in (None, LEAST_KEPT, 61, 128, 5000):
        what = kept(count, keep, signed)
        ranks = what.ranks()
        assert len(ranks) == len(what) == (count if keep is None else min(count, keep))
        assert np.all(np.diff(ranks) > 0)
        assert len(ranks) == 0 or (ranks[0] >= 0 and ranks[-1] < count)
        places = shown(what, signed)
        assert len(places.bands) == BANDS
        assert np.all(places.all() < max(len(what), 1))
        assert len(places.lowest) == (min(max(count - TOP, 0), LOWEST) if signed else 0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_the_external_sort(tmp_path: Path, chunk: int) -> None:
    chance = np.random.default_rng(0)
    dense = np.round(chance.normal(size=(137, 11)), 1).astype(np.float16)  # rounded, so that there are ties
    dense[chance.random(dense.shape) < 0.6] = 0
    dense[:, 3] = 0
    dense[50:60] = 0
    full = torch.from_numpy(dense).float()
    every = torch.arange(11).expand(137, 11)
    sparse_spool, dense_spool = SparseSpool(tmp_path, 11), DenseSpool(tmp_path, 11)
    for spool in (sparse_spool, dense_spool):
        files = spool.open(0)
        for start in range(0, 137, 20):
            spool.append(Codes(full[start : start + 20], every[start : start + 20], 11))
        files.close()
    for blocks in (SortedChunks(sparse_spool, tmp_path, chunk).blocks(), dense_blocks(dense_spool, 137, chunk)):
        found = [(feature, rows, values) for block in blocks for feature, rows, values in block.features()]
        assert [feature for feature, _, _ in found] == list(range(11))
        for feature, rows, values in found:
            assert rows.tolist() == ordered(dense[:, feature]).tolist()
            assert np.array_equal(values, dense[rows, feature])


def test_a_kind_with_any_number_of_latents_and_a_dead_one(llama, corpus: Corpus, tmp_path: Path) -> None:
    sae = JumpReLUSAE(32, 20, hook_point=POINT, name="jump")
    sae.b_enc[4] = -1e6
    world = World(wb.build_index(llama, sae, corpus, tmp_path / "i", **HOW), llama, sae, corpus)
    test_entries_are_those_of_a_plain_loop(world)
    assert world.index.feature(4).active == 0
    assert [hit.index for hit in world.index.search(density=(0, 0))] == [4]


def marked(world: World, pattern: str) -> set[int]:
    """Rows of the tokens where matches begin, found by adding up the tokenizer's own characters."""
    rows = set()
    where = {
        (text, position): row
        for row, (text, position) in enumerate(
            zip(world.seen.texts.tolist(), world.seen.positions.tolist(), strict=True)
        )
    }
    for number, text in enumerate(world.corpus.texts):
        encoded = world.model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        for match in re.finditer(pattern, text):
            start = match.start(match.re.groups and 1)
            token = next(i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > start)
            rows.add(where[number, token])
    return rows


@pytest.mark.parametrize("pattern", ["dog", r"The (c)at", r"\bran to", r"boat (🚤)", "naïve", r"End (\d)!$", r"(?m)^S"])
def test_regex_precision_and_recall(sae_world: World, pattern: str) -> None:
    rows = marked(sae_world, pattern)
    hits = sae_world.index.search(regex=pattern, min_recall=0, limit=None)
    active = sae_world.codes != 0
    by_hand = {}
    for feature in range(active.shape[1]):
        both = sum(active[row, feature] for row in rows)
        if both:
            by_hand[feature] = (both / active[:, feature].sum(), both / len(rows))
    assert {hit.index for hit in hits} == set(by_hand)
    for hit in hits:
        precision, recall = by_hand[hit.index]
        assert hit.score is not None
        assert hit.score.matches == len(rows)
        assert hit.score.exact
        assert (hit.score.precision, hit.score.recall) == (pytest.approx(precision), pytest.approx(recall))
        assert hit.score.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    scores = [hit.score.f1 for hit in hits if hit.score]
    assert scores == sorted(scores, reverse=True)
    wanted = [p for p, r in by_hand.values() if r >= 0.3 and p >= 0.05]
    found = sae_world.index.search(regex=pattern, order="precision", min_recall=0.3, min_precision=0.05, limit=None)
    assert [hit.score.precision for hit in found if hit.score] == pytest.approx(sorted(wanted, reverse=True))


def test_regex_estimates_and_neurons(sae_world: World, neuron_world: World, tmp_path: Path) -> None:
    small = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", keep=60, **HOW)
    exact = {hit.index: hit.score for hit in sae_world.index.search(regex="(dog|cat|ran|river)", min_recall=0)}
    errors = []
    for hit in small.search(regex="(dog|cat|ran|river)", min_recall=0):
        assert hit.score is not None
        assert hit.score.exact == small.entries.kept(hit.index).complete
        if hit.score.exact:
            assert hit.score == exact[hit.index]
        errors.append(hit.score.recall - exact[hit.index].recall)
    assert np.abs(errors).mean() < 0.1
    assert abs(np.mean(errors)) < 0.05
    rows = marked(neuron_world, "dog")
    for hit in neuron_world.index.search(regex="dog", min_recall=0):
        assert hit.score is not None
        best = 0.0
        ranked = ordered(neuron_world.codes[:, hit.index])[:30]  # a third of 90 are the highest
        for cut in range(1, 31):
            both = len(rows & set(ranked[:cut].tolist()))
            best = max(best, 2 * both / (cut + len(rows)))
        assert hit.score.f1 == pytest.approx(best)
        above = neuron_world.codes[:, hit.index] >= hit.score.threshold
        assert hit.score.precision == pytest.approx(above[sorted(rows)].sum() / above.sum())


def test_searching_by_word_token_label_star_density(sae_world: World, tmp_path: Path) -> None:
    index = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", **HOW)

    def tokens(feature: int) -> dict[str, list[str]]:
        card = index.feature(feature)
        peaks = [example.tokens[example.peak] for example in card.top_examples]
        return {"activating": peaks, "promoted": [one.token for one in card.promoted]}

    where = {feature: tokens(feature) for feature in range(index.n_features)}
    common = Counter(text for said in where.values() for text in said["activating"] if text.strip().isalpha())
    token = common.most_common(1)[0][0]
    word = token.strip().lower()
    hits = index.search(f"{word.upper()} ", limit=None)
    whole = {f for f, said in where.items() for texts in said.values() if word in [t.strip().lower() for t in texts]}
    assert {hit.index for hit in hits if word in [t.strip().lower() for t in where[hit.index][hit.found]]} == whole
    assert {hit.index for hit in hits[: len(whole)]} == whole
    exact = {hit.index for hit in index.search(token=token, limit=None)}
    assert exact == {f for f, said in where.items() if any(token in texts for texts in said.values())}
    some = int(index.statistics["peaks"][2, 0])
    assert 2 in {hit.index for hit in index.search(token=some, limit=None)}
    assert {hit.index for hit in index.search("!", limit=None)} == {
        f for f, said in where.items() if any("!" in [t.strip() for t in texts] for texts in said.values())
    }
    index.label(5, "animals that river")
    index.label(6, "something else")
    index.note(7, "saw it near the RIVER once")
    index.star(6)
    assert [(hit.index, hit.found) for hit in index.search("river")[:2]] == [(5, "label"), (7, "note")]
    assert [hit.index for hit in index.search(label="animal")] == [5]
    assert [hit.index for hit in index.search(starred=True)] == [6]
    assert index.search(label='"; DROP TABLE remarks; --') == []
    densest = index.search(limit=3)
    assert [hit.density for hit in densest] == sorted(index.statistics["density"], reverse=True)[:3]
    low = float(densest[-1].density)
    assert all(hit.density <= low for hit in index.search(density=(0, low)))
    assert index.search(regex="no such words anywhere") == []
    json.dumps([hit.to_dict() for hit in index.search("river", regex="river")])
    index.label(5, "")
    assert index.search(label="animal") == []


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
    for damage in ("[]", "{}", '{"dictionary": 1, "features": {"x": {}}}', "no json"):
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
        with index._people._writing() as connection:
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
    with index._people._writing() as connection:
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


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny, test_index, workbench as wb
from workbench.corpus import Corpus
from pathlib import Path

model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
corpus = Corpus(test_index.TEXTS, "forty")
for share in {shares}:
    folder = Path({folder!r}, str(share))

    def told(done, words):
        if done > share:
            for file in folder.glob("*/building/features.bin"):
                with open(file, "ab") as opened:
                    opened.write(b"work that was never committed")
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        wanted = {{folder / "sae": test_index.make_sae(), folder / "neurons": "neurons.0.post"}}
        wb.index.build_indexes(model, wanted, corpus, **test_index.HOW, commit_every=0.0, progress=told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def contents(path: Path) -> dict[str, bytes]:
    """All files of an index but its note, whose command differs."""
    return {file.name: file.read_bytes() for file in (path / "data").iterdir() if file.name != "index.json"}


@pytest.fixture(scope="module")
def unbroken(llama, corpus: Corpus, tmp_path_factory) -> Path:
    """An SAE and neurons indexed in one pass."""
    path = tmp_path_factory.mktemp("unbroken")
    wb.index.build_indexes(llama, {path / "sae": make_sae(), path / "neurons": "neurons.0.post"}, corpus, **HOW)
    return path


def test_a_killed_build_goes_on_with_equal_results(
    llama, corpus: Corpus, unbroken: Path, tmp_path: Path, tiny_cache: Path
) -> None:
    shares = (0.3, 0.92, 0.97)  # in the pass; while the first index is sorted; while the second is
    script = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), shares=shares)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=environment, check=True)
    for share in shares:
        sae, neurons = tmp_path / str(share) / "sae", tmp_path / str(share) / "neurons"
        if share < 0.95:
            with pytest.raises(wb.index.FeatureIndexError, match="interrupted"):
                wb.open_index(sae)
        told: list[float] = []
        wanted = {sae: make_sae(), neurons: "neurons.0.post"}
        wb.index.build_indexes(llama, wanted, corpus, **HOW, progress=lambda done, words, told=told: told.append(done))
        assert told == sorted(told)
        assert told[0] > 0.25
        assert told[-1] == pytest.approx(1.0)
        for path in (sae, neurons):
            assert contents(path) == contents(unbroken / path.name)
            assert not (path / "building").exists()


def test_several_at_once_are_those_built_alone(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)
    wb.build_index(llama, "neurons.0.post", corpus, tmp_path / "neurons", **HOW)
    for name in ("sae", "neurons"):
        assert contents(tmp_path / name) == contents(unbroken / name)
    before = (tmp_path / "sae" / "data" / "index.json").stat().st_mtime_ns
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)  # it is there already
    assert (tmp_path / "sae" / "data" / "index.json").stat().st_mtime_ns == before


def test_cancelling_and_going_on(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    def after(times: int) -> Iterator[bool]:
        yield from [False] * times
        while True:
            yield True

    for times in (0, 4, 10):
        answers = after(times)
        with pytest.raises(wb.index.FeatureIndexError, match="cancelled"):
            wb.build_index(
                llama, make_sae(), corpus, tmp_path / "sae", **HOW, cancel=lambda answers=answers: next(answers)
            )
    wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW, cancel=lambda: False)
    assert contents(tmp_path / "sae") == contents(unbroken / "sae")


def test_interventions_in_force_do_not_matter(llama, corpus: Corpus, unbroken: Path, tmp_path: Path) -> None:
    with llama.intervening([wb.Clamp(wb.Feature.parse("neurons.0.post:7"), 30.0)]):
        wb.build_index(llama, make_sae(), corpus, tmp_path / "sae", **HOW)
    assert contents(tmp_path / "sae") == contents(unbroken / "sae")


def test_what_fires_on_a_prompt(sae_world: World, neuron_world: World) -> None:
    for world, top in ((sae_world, 20), (neuron_world, 5)):
        fired = world.index.fires_on("The dog ran.", top)
        tokens = world.model.to_tokens("The dog ran.")
        with torch.no_grad():
            x = world.model.capture(tokens, [world.dictionary.reads])[world.dictionary.reads][0]
            dense = world.dictionary.encode(x).dense()
        assert [one.token for one in fired] == world.model.token_texts(tokens[0])
        for one, row in zip(fired, dense, strict=True):
            best = sorted(((float(v), f) for f, v in enumerate(row) if v != 0), reverse=True)[:top]
            assert list(zip(one.values, one.features, strict=True)) == best
    with pytest.raises(wb.index.FeatureIndexError, match="model"):
        wb.open_index(sae_world.index.path).fires_on("The dog")


def test_a_regular_expression_without_end_is_given_up(tmp_path: Path, llama, monkeypatch) -> None:
    from workbench.index import tokens

    monkeypatch.setattr(tokens, "PATIENCE", 0.2)
    corpus = wb.Corpus(["the dog ran to the river and the cat ran to the house " * 8])
    sae = wb.TopKSAE(32, 16, 4, hook_point="blocks.1.hook_resid_post", name="sae")
    index = wb.build_index(llama, sae, corpus, tmp_path / "index")
    with pytest.raises(wb.index.FeatureIndexError, match=r"takes longer than 0\.2 s"):
        index.search(regex=r"(\w+ ?){1,60}\d")


@pytest.mark.real
def test_a_prompt_is_read_behind_bos_as_the_texts_were(model: wb.model.LanguageModel, tmp_path: Path) -> None:
    sae = wb.TopKSAE(576, 64, 4, hook_point="blocks.2.hook_resid_post", name="sae")
    text = "The dog ran to the river."
    index = wb.build_index(model, sae, wb.Corpus([text]), tmp_path / "index")
    fired = index.fires_on(text)
    bos = torch.tensor([[model.tokenizer.bos_token_id]])
    tokens = torch.cat([bos, model.to_tokens(text)], 1)
    codes = sae.encode(model.capture(tokens, [sae.reads])[sae.reads][0, 1:])
    assert [one.token for one in fired] == model.token_texts(tokens[0, 1:])
    for one, values, indices in zip(fired, codes.values, codes.indices, strict=True):
        assert dict(zip(one.features, one.values, strict=True)) == pytest.approx(
            dict(zip(indices.tolist(), values.tolist(), strict=True)), rel=1e-4
        )
    with pytest.raises(wb.model.PromptError, match="longer than the 8,192 tokens"):
        index.fires_on("dog " * 9000)
    with pytest.raises(wb.model.PromptError, match="empty"):
        index.fires_on(" ")


def test_damage_is_seen(unbroken: Path, llama, zoo, tmp_path: Path) -> None:
    import shutil

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
    for bad in (-1, 24, "3", True, 1.0):
        with pytest.raises(wb.index.FeatureIndexError, match="there is no"):
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


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_architecture(zoo, corpus: Corpus, tmp_path: Path, name: str) -> None:
    neurons = wb.build_index(zoo[name], "neurons.1.up", corpus, tmp_path / "i", tokens=300, **HOW)
    assert neurons.n_tokens == 300
    assert len(neurons.feature(5).promoted) == 10
