"""The analyses of codebooks and of the key-value bottleneck, small, against counts and rules written here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
from test_tokfsm import HEADS, HOW, MACHINE, books, speaker  # noqa: F401

import workbench as wb
from workbench.corpus import Corpus
from workbench.synthetic import StateCounts, count_codes, force_state, next_states

sys.path.insert(0, str(Path(__file__).parents[2] / "analyses"))
import codebook_language as language
import codebook_language_page
import continual
import tokfsm
import tokfsm_page

# A language whose truth is known


PLAN = tokfsm.Plan(measured=512, walks=16, pairs=12)


@pytest.fixture(scope="module")
def models(speaker: wb.model.LanguageModel) -> dict[str, wb.model.LanguageModel]:  # noqa: F811
    return {"plain": speaker, "both": wb.training.fine_tune(speaker, MACHINE, books(), **HOW)}


@pytest.fixture(scope="module")
def results(models: dict[str, wb.model.LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    patch = pytest.MonkeyPatch()
    for name, value in {"CONTEXT": 32, "LAYERS": 2, "HEADS": 2, "D_MODEL": 16}.items():
        patch.setattr(tokfsm, name, value)
    folder = tmp_path_factory.mktemp("report")
    found = tokfsm.experiment(folder, PLAN, MACHINE, models)
    assert tokfsm.experiment(folder, PLAN, MACHINE, models) == found
    page = tokfsm_page.write_page(folder, found, tokfsm.PUBLISHED)
    assert "attention + MLP" in page.read_text()
    patch.undo()
    return found


def test_loss_and_accuracy_by_a_loop(results: dict[str, Any], models: dict[str, wb.model.LanguageModel]) -> None:
    for name, model in models.items():
        losses, right = [], []
        for batch in MACHINE.batches(model, 32, 64, PLAN.measured, seed=PLAN.seed + 999):
            for row in batch.tokens:
                logits = model(row[None])[0].log_softmax(-1)
                for place in range(2, len(row)):  # the first digit can't be known
                    losses.append(-float(logits[place - 1, row[place]]))
                    right.append(int(logits[place - 1].argmax()) == int(row[place]))
        said = results["models"][name]["language"]
        assert said["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert said["accuracy"] == pytest.approx(np.mean(right))


def test_state_codes_by_counting(results: dict[str, Any], models: dict[str, wb.model.LanguageModel]) -> None:
    model = models["both"]
    counted = count_codes(model, MACHINE, walks=PLAN.walks, seed=PLAN.seed + 32)
    for row in results["models"]["both"]["state_codes"]["states"]:
        counts = counted.counts[row["hook_point"]][row["code"]]  # [states]
        active = int(counts.sum())
        assert row["precision"] == pytest.approx(int(counts[row["state"]]) / active if active else 0)
        assert row["recall"] == pytest.approx(int(counts[row["state"]]) / int(counted.seen[row["state"]]))
        assert 0 <= row["neuron"]["precision"] <= 1


def test_divergence_of_states_that_share_a_code(models: dict[str, wb.model.LanguageModel]) -> None:
    counts = torch.zeros(40, MACHINE.states, dtype=torch.long)
    group = torch.arange(MACHINE.states) // 2  # states 0 and 1 have code 0 in both heads, 2 and 3 code 1, ...
    counts[group, torch.arange(MACHINE.states)] = 5
    counts[20 + group, torch.arange(MACHINE.states)] = 5
    found = tokfsm.divergences(models["both"], MACHINE, StateCounts({HEADS: counts}, torch.ones(MACHINE.states)))
    edges = [set(row.nonzero()[:, 0].tolist()) for row in MACHINE.follows]

    def divergence(
        a: int, b: int
    ) -> float:  # of two uniform distributions over equally many states: the share not shared
        return 1 - len(edges[a] & edges[b]) / MACHINE.edges

    pairs = [(a, a + 1) for a in range(0, MACHINE.states - 1, 2)]
    assert found[HEADS]["shared"] == pytest.approx(np.mean([divergence(*pair) for pair in pairs]))
    every = [divergence(a, b) for a in range(MACHINE.states) for b in range(a)]
    assert found[HEADS]["random"] == pytest.approx(np.mean(every))
    assert found[HEADS]["pairs"] == 2 * len(pairs)


def test_steering_says_shares(results: dict[str, Any]) -> None:
    steering = results["models"]["both"]["steering"]
    assert steering["chance"] == MACHINE.edges / MACHINE.states
    for kind in ("plain", "forced", "random"):
        assert all(0 <= steering[kind][what] <= 1 for what in ("target", "own", "sampled"))


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_what_ships_gives_the_reported_loss_and_accuracy(name: str) -> None:
    said = json.loads((RESULTS / "tokfsm.json").read_text())
    model, plan = wb.load_model(f"tokfsm-{name}"), tokfsm.Plan()
    assert said["provenance"]["plan"] == json.loads(json.dumps(tokfsm.asdict(plan)))
    assert said["models"][name]["hash"] == model.hash
    assert tokfsm.language(model, wb.synthetic.TokFSM(), plan) == pytest.approx(
        said["models"][name]["language"], rel=1e-3
    )


def test_what_ships_is_steered_as_reported() -> None:
    said = json.loads((RESULTS / "tokfsm.json").read_text())["models"]["both"]["steering"]
    model, machine = wb.load_model("tokfsm-both"), wb.synthetic.TokFSM()
    counted = [count_codes(model, machine, walks=256, written=written) for written in range(2)]
    walk, target = machine.walk(4, 12, 5), 55
    found = next_states(model, machine, walk, force_state(model, machine, counted, target, 12))
    share = float(found[:, machine.follows[target]].sum(1).mean())
    assert share == pytest.approx(said["forced"]["target"], abs=0.15)


def test_the_language_model_that_ships_gives_the_reported_accuracy_and_writes_on_topic() -> None:
    said = json.loads((RESULTS / "codebook_language.json").read_text())
    model, plan = wb.load_model(language.NAME), language.Plan()
    assert said["provenance"]["plan"] == json.loads(json.dumps(language.asdict(plan)))
    assert said["provenance"]["model_hash"] == model.hash
    own = said["cost"]["the model's own stories"]["codebooks"]
    found = language.language(model, language.texts(plan, None)["the model's own stories"], plan)
    assert found == pytest.approx(own, rel=1e-3)
    topic = max(said["steering"], key=lambda topic: said["steering"][topic]["codes"]["on_topic"])
    codes = [row["feature"] for row in said["topics"]["forced"][topic]]
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    forced = [books[name].feature(int(index)) for name, index in (one.rsplit(":", 1) for one in codes)]
    made = language.write(model, model, language.forced(forced), language.Plan(samples=2, length=60))
    assert made.on_topic(language.TOPICS[topic]) >= 0.5


# Learning one kind after another


@pytest.fixture(scope="module")
def trial() -> continual.Trial:
    chance = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 24, generator=chance)
    angles = torch.arange(5) * 2 * torch.pi / 5
    centres = 6 * torch.stack([angles.cos(), angles.sin()], 1) @ plane  # kinds are neighbours on a circle
    labels = [kind for kind in "abcde" for _ in range(40)]
    x = torch.cat([centre + torch.randn(40, 24, generator=chance) for centre in centres])
    plan = continual.Plan(epochs=4, codebooks=16, n_keys=32, d_key=6, seeds=1)
    return continual.Trial(x, labels, plan, 3)


def test_texts_are_split_within_each_kind_and_none_is_used_twice(trial: continual.Trial) -> None:
    assert {part: Counter(y.tolist()) for part, y in trial.data.y.items()} == {
        "learn": Counter(dict.fromkeys(range(5), 24)),
        "choose": Counter(dict.fromkeys(range(5), 8)),
        "test": Counter(dict.fromkeys(range(5), 8)),
    }
    rows = torch.cat(list(trial.data.x.values()))
    assert len(rows.unique(dim=0)) == 200
    torch.testing.assert_close(trial.data.x["learn"].mean(0), torch.zeros(24), atol=1e-5, rtol=0)


def test_the_bottleneck_keeps_what_a_probe_forgets(trial: continual.Trial) -> None:
    kept = trial.run("key-value bottleneck", 0.1, mixed=False)
    assert len(kept["curve"]) == 5
    assert kept["test"] > 0.9
    assert trial.run("key-value bottleneck", 0.1, mixed=False) == kept
    assert trial.run("linear probe", 0.03, mixed=True)["test"] > 0.9
    assert trial.run("linear probe", 0.3, mixed=False)["test"] < kept["test"] - 0.2


def test_learning_from_codes_is_learning_from_activations(trial: continual.Trial) -> None:
    keys, rows = trial.keys, torch.arange(0, 120, 3)
    x, y = trial.data.x["learn"][rows], trial.data.y["learn"][rows]
    keys.values.zero_()
    keys.learn(x, y, lr=0.2)
    expected = keys.values.clone()
    learn, _ = trial.learner("key-value bottleneck", 0.2)
    learn(rows)
    torch.testing.assert_close(keys.values, expected)


# A language model


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
    plan = language.Plan(searched=10_000)
    found = language.count_codes(spliced, corpus, {"dog": pattern}, plan)
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
    best = language.codes_of_topic(spliced, found, "dog", language.Plan(shown=3, least=1))
    f1 = {code: 2 * hits[code] / (active[code] + matches) for code in active}
    scores = [2 * row["precision"] * row["recall"] / max(row["precision"] + row["recall"], 1e-9) for row in best]
    assert scores == pytest.approx(sorted(f1.values(), reverse=True)[:3])


def test_effects_are_slopes(spliced: wb.model.LanguageModel) -> None:
    corpus, plan = Corpus(TEXTS * 6), language.Plan()
    found = language.effects(spliced, corpus, {"the": "the"}, plan)["the"]
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
        x = model.capture(tokens, [point])[point][0, -len(words) :].flatten(1)
        squares.append((book.decode(book.encode(x)) - x).square().sum(1))
        with model.spliced({point: book}):
            logits = model(tokens)[0, -len(words) : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(words[1:]), reduction="none"))
    assert lines[0]["error"] == pytest.approx(float(torch.cat(squares).mean()), rel=1e-4)
    assert lines[0]["ce"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_the_strongest_codes_are_at_most_k_of_each_head() -> None:
    effect = torch.arange(48).float()  # 12 codes in each of four heads
    plan = language.Plan(codes=12, k=2, forced=5)
    assert language.strongest(effect, plan) == [47, 46, 35, 34, 23]


def test_random_codes_are_of_the_same_heads(spliced: wb.model.LanguageModel) -> None:
    asked = ["book-0:3", "book-1:20", "book-0:23"]
    drawn = language.random_codes(spliced, asked, 1)
    assert [(one.source.name, one.index // 12) for one in drawn] == [("book-0", 0), ("book-1", 1), ("book-0", 1)]


def test_a_rival_is_as_strong_as_costs_the_same(monkeypatch: pytest.MonkeyPatch, llama: wb.model.LanguageModel) -> None:
    costs = {0.5: 2.0, 1.0: 3.0, 1.5: 2.5, 2.0: 5.0, 3.0: 6.0}
    asked: list[float] = []

    def write(model: Any, judge: Any, edits: Any, plan: language.Plan) -> language.Texts:
        asked.append(edits)
        return language.Texts([], np.exp(costs[edits]), 1.0)

    monkeypatch.setattr(language, "write", write)
    plan = language.Plan(strengths=tuple(costs))
    assert language.matched(lambda strength: strength, 4.0, llama, plan) == pytest.approx(1.75)
    assert asked == [0.5, 1.0, 1.5, 2.0]
    assert language.matched(lambda strength: strength, 9.0, llama, plan) == 3.0
    assert language.matched(lambda strength: strength, 1.0, llama, plan) == 0.5


def test_texts_on_topic_and_the_report(tmp_path: Path) -> None:
    made = language.Texts(["A Dragon came.", "dragonfly", "nothing <b>here</b>"], 12.0, 0.9)
    assert made.on_topic(language.TOPICS["dragon"]) == pytest.approx(1 / 3)
    row = language.told(made, "dragon")
    assert row["sample"] == "A Dragon came."
    plan = language.asdict(language.Plan())
    one = {"on_topic": 0.1, "perplexity": 9.0, "distinct": 0.9, "sample": "nothing <b>here</b>"}
    code = {"feature": "heads-10:1", "precision": 0.5, "recall": 0.5}
    results = {
        "provenance": {"plan": plan, "versions": {}},
        "cost": {"text": {n: {"loss": 1.0, "accuracy": 0.5} for n in ("plain", "codebooks")}},
        "topics": {"dead": 0.0, "matches": {"dragon": 3}, "codes": {"dragon": [code]}},
        "unsteered": {n: {"on_topic": {"dragon": 0.0}, "perplexity": 8.0} for n in ("plain", "codebooks")},
        "steering": {"dragon": {"latent": code} | dict.fromkeys(language.METHODS, one)},
    }
    page = codebook_language_page.write_page(tmp_path, results, language.METHODS).read_text()
    assert "nothing &lt;b&gt;here&lt;/b&gt;" in page
    assert "<b>here</b>" not in page
