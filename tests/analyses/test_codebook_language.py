"""The study of codebooks in a language model, small, and what ships against the reported figures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch

import workbench as wb
from analyses.codebook_language import codes, page, steering, study, writing
from analyses.codebook_language import plan as settings
from workbench.corpus import Corpus

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_language_model_that_ships_gives_the_reported_accuracy_and_writes_on_topic() -> None:
    reported = json.loads((RESULTS / "codebook_language.json").read_text())
    model, plan = wb.load_model(settings.NAME), settings.Plan()
    assert reported["provenance"]["plan"] == json.loads(json.dumps(asdict(plan)))
    assert model.is_named(reported["provenance"]["model_hash"])
    own = settings.texts(plan, None)["the model's own stories"]
    measured = study.language(model, own, study.sample_of(plan))
    assert measured == pytest.approx(reported["sample"], rel=1e-3)
    # the sample is small beside what is reported, and agrees with it as far as its size allows
    accuracy = reported["cost"]["the model's own stories"]["codebooks"]["accuracy"]
    spread = (accuracy * (1 - accuracy) / measured["tokens"]) ** 0.5
    assert measured["accuracy"] == pytest.approx(accuracy, abs=4 * spread)
    topic = max(reported["steering"], key=lambda topic: reported["steering"][topic]["codes"]["on_topic"])
    chosen = [row["feature"] for row in reported["topics"]["forced"][topic]]
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    forced = [books[name].feature(int(index)) for name, index in (one.rsplit(":", 1) for one in chosen)]
    _, written = writing.continuations(model, writing.forced(forced), settings.Plan(samples=2, length=60))
    on_topic = [regex.search(settings.TOPICS[topic], one.text, regex.IGNORECASE) is not None for one in written]
    assert np.mean(on_topic) >= 0.5


TEXTS = ["The Dogs ran to a dog.", "A doghouse stood there, and the puppy slept.", "Nothing to see, my friend."]


@pytest.fixture(scope="module")
def spliced(zoo: Any) -> wb.model.LanguageModel:
    model = zoo["llama"]
    points = [f"blocks.{layer}.attn.hook_z" for layer in range(2)]
    made = {
        point: wb.Codebook(model.hook_points[point].width, 12, 2, groups=2, hook_point=point, name=f"book-{n}", seed=n)
        for n, point in enumerate(points)
    }
    return wb.training.fine_tune(model, Corpus(TEXTS), made, tokens=64, batch=2, context=16, frozen=True)


def test_codes_on_a_topic_s_words_by_a_loop(spliced: wb.model.LanguageModel) -> None:
    corpus, pattern = Corpus(TEXTS), r"\b(dogs?|puppy)\b"
    plan = settings.Plan(searched=10_000)
    found = codes.count_codes(spliced, corpus, {"dog": pattern}, plan)
    points = list(spliced.splices)
    active, hits, matches = Counter(), Counter(), 0
    for text in TEXTS:
        said = spliced.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        bos = spliced.tokenizer.bos_token_id
        tokens = torch.tensor([([] if bos is None else [bos]) + said["input_ids"]])
        shift = tokens.shape[1] - len(said["input_ids"])
        starts = {match.start(1) for match in regex.finditer(pattern, text, regex.IGNORECASE)}
        values = spliced.capture(tokens, points)
        for place, (begin, end) in enumerate(said["offset_mapping"]):
            if shift + place == 0:  # the first position does not count
                continue
            marked = any(begin <= start < end for start in starts)
            matches += marked
            for number, point in enumerate(points):
                book: Any = spliced.splices[point]
                for code in book.encode(values[point][0, shift + place].flatten()).indices.tolist():
                    active[number * book.n_features + code] += 1
                    hits[number * book.n_features + code] += marked
    assert found.matches == {"dog": matches}
    assert matches == 3
    assert {n: count for n, count in enumerate(found.active.tolist()) if count} == dict(active)
    assert {n: count for n, count in enumerate(found.hits["dog"].tolist()) if count} == dict(+hits)
    best = codes.codes_of_topic(spliced, found, "dog", settings.Plan(shown=3, least=1))
    f1 = {code: 2 * hits[code] / (active[code] + matches) for code in active}
    scores = [2 * row["precision"] * row["recall"] / max(row["precision"] + row["recall"], 1e-9) for row in best]
    assert scores == pytest.approx(sorted(f1.values(), reverse=True)[:3])


def test_effects_are_slopes(spliced: wb.model.LanguageModel) -> None:
    corpus, plan = Corpus(TEXTS * 6), settings.Plan()
    found = codes.effects(spliced, corpus, {"the": "the"}, plan)["the"]
    batch = next(iter(corpus.batches(spliced, 64, 16, seed=plan.seed)))
    texts = spliced.token_texts(list(range(spliced.network.vocab_size)))
    ids = [number for number, text in enumerate(texts) if text.strip().lower() == "the"]
    point = "blocks.1.attn.hook_z"  # behind it nothing is snapped
    book: Any = spliced.splices[point]

    def gained(code: int, size: float) -> float:
        steer = wb.Steer.along(point, book.direction(code), size)
        with spliced.intervening([steer]):
            logits = spliced(batch.tokens, mask=batch.mask)[batch.content].double()
        return float((logits[:, ids].logsumexp(1) - logits.logsumexp(1)).mean())

    size = 1e-2
    slopes = torch.tensor([(gained(c, size) - gained(c, -size)) / (2 * size) for c in range(book.n_features)])
    slopes = (slopes.view(2, 12) - slopes.view(2, 12).mean(1, keepdim=True)).flatten()
    mine = found[book.n_features :]
    torch.testing.assert_close(mine, slopes.float(), rtol=0.05, atol=0.02 * float(mine.abs().max()))


def test_padding_and_bos_take_no_part_in_learning(zoo: Any) -> None:
    model = zoo["llama"]
    point = "blocks.0.attn.hook_z"
    book = wb.Codebook(model.hook_points[point].width, 12, groups=2, hook_point=point)
    lines: list[Any] = []
    how: dict[str, Any] = {"tokens": 3 * 64, "batch": 3, "context": 64, "frozen": True, "fresh": False}
    before = book.codes.clone()
    wb.training.fine_tune(model, Corpus(TEXTS), {point: book}, log=lines.append, **how)
    book.codes.copy_(before)
    squares, losses = [], []
    for text in TEXTS:  # one by one, with no padding
        words = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = model.tokenizer.bos_token_id
        tokens = torch.tensor([([] if bos is None else [bos]) + words])
        words = tokens[0, 1:].tolist()  # the first position does not count
        x = model.capture(tokens, [point])[point][0, -len(words) :].flatten(1)
        squares.append((book.decode(book.encode(x)) - x).square().sum(1))
        with model.spliced({point: book}):
            logits = model(tokens)[0, -len(words) : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(words[1:]), reduction="none"))
    assert lines[0]["error"] == pytest.approx(float(torch.cat(squares).mean()), rel=1e-4)
    assert lines[0]["ce"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_the_strongest_codes_are_at_most_k_of_each_head() -> None:
    effect = torch.arange(48).float()  # 12 codes in each of four heads
    plan = settings.Plan(codes=12, k=2, forced=5)
    assert codes.strongest(effect, plan) == [47, 46, 35, 34, 23]


def test_random_codes_are_of_the_same_heads(spliced: wb.model.LanguageModel) -> None:
    asked = ["book-0:3", "book-1:20", "book-0:23"]
    drawn = steering.random_codes(spliced, asked, 1)
    assert [(one.source.name, one.index // 12) for one in drawn] == [("book-0", 0), ("book-1", 1), ("book-0", 1)]


def test_a_rival_is_as_strong_as_costs_the_same(monkeypatch: pytest.MonkeyPatch, llama: wb.model.LanguageModel) -> None:
    costs = {0.5: 2.0, 1.0: 3.0, 1.5: 2.5, 2.0: 5.0, 3.0: 6.0}
    asked: list[float] = []

    def write(model: Any, judge: Any, edits: Any, plan: settings.Plan) -> writing.Texts:
        asked.append(edits)
        return writing.Texts([], np.exp(costs[edits]), 1.0)

    monkeypatch.setattr(writing, "write", write)
    plan = settings.Plan(strengths=tuple(costs))
    assert writing.matched(lambda strength: strength, 4.0, llama, plan) == pytest.approx(1.75)
    assert asked == [0.5, 1.0, 1.5, 2.0]
    assert writing.matched(lambda strength: strength, 9.0, llama, plan) == 3.0
    assert writing.matched(lambda strength: strength, 1.0, llama, plan) == 0.5


def test_texts_on_topic_and_the_report(tmp_path: Path) -> None:
    made = writing.Texts(["A Dragon came.", "dragonfly", "nothing <b>here</b>"], 12.0, 0.9)
    assert made.on_topic(settings.TOPICS["dragon"]) == pytest.approx(1 / 3)
    row = writing.summarise_texts(made, "dragon")
    assert row["sample"] == "A Dragon came."
    plan = asdict(settings.Plan())
    one = {"on_topic": 0.1, "perplexity": 9.0, "distinct": 0.9, "sample": "nothing <b>here</b>"}
    code = {"feature": "heads-10:1", "precision": 0.5, "recall": 0.5}
    results = {
        "provenance": {"plan": plan, "versions": {}},
        "cost": {"text": {n: {"loss": 1.0, "accuracy": 0.5} for n in ("plain", "codebooks")}},
        "topics": {"dead": 0.0, "matches": {"dragon": 3}, "codes": {"dragon": [code]}},
        "unsteered": {n: {"on_topic": {"dragon": 0.0}, "perplexity": 8.0} for n in ("plain", "codebooks")},
        "steering": {"dragon": {"latent": code} | dict.fromkeys(settings.METHODS, one)},
    }
    text = page.write_page(tmp_path, results).read_text()
    assert "nothing &lt;b&gt;here&lt;/b&gt;" in text
    assert "<b>here</b>" not in text
