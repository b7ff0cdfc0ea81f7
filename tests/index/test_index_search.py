"""Searches by word, token, label, star, density and regular expression."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_models import HOW, World, ordered

import workbench as wb
from workbench.index.searching import Searcher


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
            if (number, token) in where:  # a window's first token is not read
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
    assert {hit.index for hit in hits if word in [t.strip().lower() for t in where[hit.index][hit.matched_in]]} == whole
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
    assert [(hit.index, hit.matched_in) for hit in index.search("river")[:2]] == [(5, "label"), (7, "note")]
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


def test_a_regular_expression_without_end_is_given_up(tmp_path: Path, llama, monkeypatch) -> None:
    monkeypatch.setattr("workbench.core.patterns.PATIENCE", 0.2)
    corpus = wb.Corpus(["the dog ran to the river and the cat ran to the house " * 8])
    sae = wb.TopKSAE(32, 16, 4, hook_point="blocks.1.hook_resid_post", name="sae")
    index = wb.build_index(llama, sae, corpus, tmp_path / "index")
    with pytest.raises(wb.index.FeatureIndexError, match=r"takes longer than 0\.2 s"):
        index.search(regex=r"(\w+ ?){1,60}\d")


def test_words_rank_by_place_then_number_then_density() -> None:
    """Against a sort by hand of random token lists."""
    chance = np.random.default_rng(0)
    peaks = chance.integers(0, 6, (60, 5))
    density = chance.choice([0.1, 0.2, 0.3, 0.4], 60) + np.arange(60) * 1e-6

    tokens: Any = SimpleNamespace(pieces={number: f" word{number}" for number in range(6)})
    searcher = Searcher(tokens, {"peaks": peaks, "promoted": np.full((60, 1), -1), "density": density})
    found = list(searcher.with_text("word3", {}))
    rows = [(row.tolist().index(3), -row.tolist().count(3), density[n], n) for n, row in enumerate(peaks) if 3 in row]
    assert found == [n for *_, n in sorted(rows)]


def test_without_a_query_the_sharpest_come_first(sae_world: World, tmp_path: Path) -> None:
    index = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", **HOW)

    def share(feature: int) -> float:
        rows, _ = index.top(feature, 20)
        texts = [text.strip().casefold() for text in index.tokens.strings(index.tokens.ids[rows])]
        return max(Counter(texts).values(), default=0) / 20

    hits = index.search(unasked="sharpness", limit=None)
    shares = [share(hit.index) for hit in hits]
    assert sorted(hit.index for hit in hits) == list(range(index.n_features))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    dullest = hits[-1].index
    index.star(dullest)
    assert index.search(unasked="sharpness", limit=1)[0].index == dullest


def test_a_hit_names_the_token_that_was_found(sae_world: World, tmp_path: Path) -> None:
    index = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", **HOW)
    hits = index.search("dog", limit=None)
    assert hits
    assert all("dog" in hit.matched_token.lower() for hit in hits)
    assert all(hit.matched_token in getattr(hit, hit.matched_in) for hit in hits)
    index.label(3, "a dog")
    assert index.search("dog")[0].matched_token == ""
