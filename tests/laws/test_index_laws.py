"""Indexes: every context is a piece of its text, and every hit of a search passes each filter, recounted from cards."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tokenizers_zoo

import workbench as wb
from workbench.index import Example, FeatureCard, FeatureIndex
from workbench.index.tokens import TokenTable

POINT = "blocks.1.hook_resid_post"
BROKEN = "�"
SIGNS = ["C++", "C#", "c", "*", "a*b", "(dog)", "river.", "naïve", "🚤"]


def texts(seed: int) -> list[str]:
    """Texts of many lengths, so that their windows are read in any order; some repeat themselves, or hold a mark."""
    chance = random.Random(seed)
    words = [*re.findall(r"\w+[.,?!]?", tiny.TEXT), *SIGNS, *map(str, range(100, 130))]
    made = []
    for _ in range(16):
        text = " ".join(chance.choices(words, k=chance.randint(1, 45)))
        text = " ".join([text] * chance.choice([1, 1, 2, 4]))
        made.append(text + chance.choice(["", f"{tokenizers_zoo.EOS} {text}"]))
    return made


def sae(name: str = "small") -> wb.TopKSAE:
    return wb.TopKSAE(32, 24, 4, hook_point=POINT, name=name)


def of_card(card: FeatureCard) -> list[Example]:
    return [*card.top_examples, *card.quantile_examples, *card.lowest_examples]


def check_contexts(index: FeatureIndex, corpus: wb.Corpus, features: list[int], ids: dict[int, list[int]]) -> int:
    """Each context is what its text holds around the example's position; returns how many were looked at."""
    seen = 0
    for feature in features:
        for example in of_card(index.feature(feature)):
            text, begin = corpus.texts[example.text], example.position - example.peak
            rows = np.arange(len(example.tokens)) + example.row - example.peak
            wanted = ids[example.text][begin : begin + len(example.tokens)]
            assert index.tokens.ids[rows].tolist() == wanted
            piece = "".join(example.tokens)
            if any(re.fullmatch(" .* ", token) for token in example.tokens[:2]):  # of several words; no family has one
                piece = piece.lstrip(" ")
            parts = re.split(f"{BROKEN}+", piece)
            assert re.search(".{0,9}".join(map(re.escape, parts)), text, re.DOTALL), (example.tokens, text)
            seen += 1
    return seen


USABLE = [name for name in tokenizers_zoo.KINDS if name != "bytes-larger" and "chat" not in name]
"""A chat template has no part in a corpus."""


@pytest.mark.parametrize("name", USABLE)
def test_a_context_is_a_piece_of_its_text(name: str, tmp_path: Path, tiny_cache: Path) -> None:
    tokenizer = tokenizers_zoo.build(name)
    model = wb.load_model(tiny.build("llama"), tokenizer=tokenizer)
    corpus = wb.Corpus(texts(USABLE.index(name)), "mixed")
    ids = dict(enumerate(tokenizer(corpus.texts, add_special_tokens=False).input_ids))
    how: dict[str, Any] = {"context": 24, "batch": 3, "keep": 60}
    folders: dict[str | Path, Any] = {tmp_path / "latents": sae(), tmp_path / "neurons": "neurons.1.gate"}
    for index in wb.index.build_indexes(model, folders, corpus, **how):
        assert check_contexts(index, corpus, list(range(0, index.n_features, 4)), ids) > 100
        lengths = [len(example.tokens) for example in of_card(index.feature(0))]
        assert max(lengths) > 4, "a context is more than its peak"


def test_an_index_of_before_is_mended_when_it_is_opened() -> None:
    """The shipped index was built when contexts joined windows."""
    corpus = wb.Corpus(wb.Corpus.load("stories").texts[2000:2900])  # as its note says
    index = wb.open_index("resid-15")
    for feature in range(0, index.n_features, 300):
        for example in of_card(index.feature(feature)):
            piece = "".join(example.tokens)
            assert BROKEN in piece or piece in corpus.texts[example.text]


def test_a_token_has_no_space_that_its_text_lacks(tmp_path: Path, tiny_cache: Path) -> None:
    for name, text in (("metaspace", "The dog ran."), ("fallback-bos", "The dog ran."), ("words", "The dog ran.")):
        model = wb.load_model(tiny.build("llama"), tokenizer=tokenizers_zoo.build(name))
        index = wb.build_index(model, sae(), wb.Corpus([text]), tmp_path / name)
        table: TokenTable = index.tokens
        assert text.endswith("".join(table.strings_in_text(np.arange(len(table))))), name


# ---- searches

LABELS = [
    "C++",
    "C#",
    "c",
    "😀",
    "*",
    "a*b",
    "(dog) animals",
    "dogs",
    "The river.",
    "naïve",
    "小犬",
    "x_dog",
    '"quoted"',
]
QUERIES = [
    "C++",
    "C#",
    "c",
    "😀",
    "*",
    "a*b",
    "dog",
    "DOGS",
    "river.",
    "river",
    "the",
    "the dog",
    "+",
    "(",
    "naïve",
    "犬",
]
QUERIES += ['"', "a* b", "og", "++", "1", "11", "e.", "NEAR(dog", "-", "_dog", "'; DROP TABLE remarks; --"]


def holds(query: str, texts: list[str]) -> bool:
    """Whether some texts hold each word of a query, where one begins; by a regular expression."""
    for word in query.casefold().split():
        behind = r"(?<![a-z0-9ï])" if re.match("[a-z0-9ï]", word) else ""
        if not any(re.search(behind + re.escape(word), text.casefold()) for text in texts):
            return False
    return True


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureIndex, dict[int, dict[str, list[str]]]]:
    """An index with labels, and the fields of each feature as its card shows them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = wb.load_model(tiny.build("llama"), tokenizer=tokenizers_zoo.build("bytes-bos"))
        index = wb.build_index(model, sae(), wb.Corpus(texts(0)), tmp_path_factory.mktemp("index") / "i")
    for feature, label in enumerate(LABELS):
        index.label(feature, label)
        index.note(feature + 5, label)
        index.star(2 * feature % index.n_features)
    fields = {}
    for feature in range(index.n_features):
        card = index.feature(feature)
        fields[feature] = {
            "label": [card.label],
            "note": [card.note],
            "activating": [example.tokens[example.peak] for example in card.top_examples],
            "promoted": [one.token for one in card.promoted],
        }
    return index, fields


@pytest.mark.parametrize("query", QUERIES)
def test_a_search_by_text_finds_what_holds_it_and_nothing_else(query: str, labelled: Any) -> None:
    index, fields = labelled
    hits = index.search(query, limit=None)
    wanted = {one for one, texts in fields.items() if any(holds(query, field) for field in texts.values())}
    assert {hit.index for hit in hits} == wanted
    assert all(holds(query, fields[hit.index][hit.matched_in]) for hit in hits)
    by_label = {hit.index for hit in index.search(label=query, limit=None)}
    assert by_label == {one for one, texts in fields.items() if holds(query, texts["label"])}
    ranks = [["label", "note"].index(hit.matched_in) if hit.matched_in in ("label", "note") else 2 for hit in hits]
    assert ranks == sorted(ranks), "labels first, then notes"


def test_all_conditions_hold_together(labelled: Any) -> None:
    index, fields = labelled
    chance = random.Random(3)
    cards = {feature: index.feature(feature) for feature in fields}
    tokens = sorted({token for texts in fields.values() for token in texts["activating"]})
    found = 0
    for _ in range(60):
        low, high = sorted(chance.choices([0.0, 0.05, 0.1, 0.2, 0.5, 1.0], k=2))
        asked: dict[str, Any] = {"density": (low, high), "limit": chance.choice([1, 3, None])}
        given = {"text": QUERIES, "label": QUERIES, "token": tokens, "starred": [True], "regex": ["dog|cat", "the"]}
        for name in chance.sample(sorted(given), chance.choice([0, 1, 1, 2])):
            asked[name] = chance.choice(given[name])
        hits = index.search(**asked)
        wanted = {
            feature
            for feature, card in cards.items()
            if low <= card.density <= high
            and ("text" not in asked or any(holds(asked["text"], field) for field in fields[feature].values()))
            and ("label" not in asked or holds(asked["label"], [card.label]))
            and ("token" not in asked or asked["token"] in fields[feature]["activating"] + fields[feature]["promoted"])
            and ("starred" not in asked or card.starred)
        }
        assert {hit.index for hit in hits} <= wanted, asked
        if "regex" not in asked:
            assert len(hits) == min(len(wanted), asked["limit"] or len(wanted)), asked
        found += len(hits)
    assert found > 50


def test_nothing_to_search_for_is_refused(labelled: Any) -> None:
    index, _ = labelled
    for asked in ({"text": " "}, {"label": ""}, {"label": "\n"}, {"token": ""}):
        with pytest.raises(wb.index.FeatureIndexError, match="nothing to search for"):
            index.search(**asked)
    with pytest.raises(wb.index.FeatureIndexError, match="token"):
        index.search(token=-1)  # in the tables it stands for no token
