"""The neuron-decoding analysis, on tiny models with a planted neuron, against loops and plain forward hooks."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import reference
import tiny
import torch
from plotly.offline import get_plotlyjs

import workbench as wb
from analyses.neuron_decoding import concepts, dose, favourite
from analyses.neuron_decoding import page as paper_page
from analyses.neuron_decoding import study as nd
from analyses.neuron_decoding.plan import read_plan
from analyses.shared import report

RESULTS = Path(__file__).parents[2] / "docs" / "results"
LAYER, INDEX = 1, 5
"""Where the tiny model's planted " dog" neuron is."""
PLAN: dict[str, Any] = {
    "rule": {"top_k": 5, "min_forms": 1, "clear_excess": 5},
    "concepts": {"animals": {"dog": ["dog"], "cat": ["cat"]}, "things": {"house": ["house"], "zeppelin": ["zeppelin"]}},
    "dose": {"values": [-20, 0, 20], "compared": 20, "random": 3, "prompts": ["The cat ran to the", "Once upon a"]},
    "favourite": {
        "tokens": 6,
        "sites": ["up", "post", "gate"],
        "values": [20, -20],
        "random": 2,
        "temperature": 1.0,
        "max_perplexity": 1e9,
        "max_repetition": 0.9,
        "held_out": ["What animal?"],
        "counted": ["Your favourite animal?", "And the animal is?", "A cat?"],
    },
    "animals": {
        "dog": {"forms": ["dog"], "also": ["dogs"]},
        "cat": {"forms": ["cat"], "also": []},
        "anim": {"forms": ["animal"], "also": []},
    },
}


def planted() -> torch.nn.Module:
    """A tiny Llama in which one neuron of layer 1 writes nothing but " dog", strongly."""
    module = tiny.build("llama")
    dog = dog_token()
    with torch.no_grad():
        direction = module.lm_head.weight[dog]
        module.model.layers[LAYER].mlp.down_proj.weight[:, INDEX] = 3 * direction
    return module


def dog_token() -> int:
    (token,) = tiny.tokenizer()(" dog").input_ids
    return token


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole analysis on the planted model, once."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(folder / "cache"))
        model = wb.load_model(planted(), tokenizer=tiny.tokenizer())
        results, texts = nd.experiment(model, PLAN, folder, quick=True)
        report.write_json(folder / "results.json", results)
        paper_page.write_page(folder, results, texts)
        yield {"model": model, "results": results, "texts": texts, "folder": folder}


def test_the_planted_neuron_is_found(run: dict[str, Any]) -> None:
    dog = run["results"]["concepts"]["dog"]
    assert dog["feature"] == f"neurons.{LAYER}.post:{INDEX}"
    assert dog["weights"] == "down"
    assert dog["specialised"]
    assert dog["tokens"][0] == " dog"
    assert run["results"]["missing"] == ["zeppelin"]
    assert "zeppelin" not in run["results"]["concepts"]


def test_the_best_neuron_is_the_best_of_all_by_brute_force(run: dict[str, Any]) -> None:
    module, vocabulary = planted(), run["model"].token_texts(range(tiny.VOCAB))
    head = module.lm_head.weight.detach()
    for concept, forms in (("dog", {"dog"}), ("cat", {"cat"}), ("house", {"house"})):
        ids = {token for token, text in enumerate(vocabulary) if text.strip().casefold() in forms}
        marks = []
        for weights in ("gate", "up", "down"):
            for layer in range(3):
                for vector in tiny.weights(module, layer)[weights]:
                    top = sorted(range(len(head)), key=(head @ vector).tolist().__getitem__, reverse=True)[:5]
                    marks.append((top[0] in ids, len(ids & set(top))))
        found = run["results"]["concepts"][concept]
        assert (found["top_is_form"], found["forms"]) == max(marks)
        assert found["form_tokens"] == len(ids)


@pytest.mark.parametrize("site", ["gate", "up", "post"])
def test_dose_response_equals_plain_hooks(run: dict[str, Any], site: str) -> None:
    module, model = planted(), run["model"]
    place, side = tiny.mlp(module, LAYER)[site]
    ids = [token for token, text in enumerate(model.token_texts(range(tiny.VOCAB))) if text.strip().lower() == "dog"]
    changes, kls = [], []
    for value in PLAN["dose"]["values"]:
        change, kl = [], []
        for prompt in PLAN["dose"]["prompts"]:
            tokens = model.to_tokens(prompt)
            plain = reference.logits_under(module, tokens)[0, -1]
            set_it = reference.at_index(INDEX, lambda old, value=value: torch.full_like(old, value))
            clamped = reference.logits_under(module, tokens, [reference.PlainEdit(place, side, set_it)])[0, -1]
            change.append(float(clamped.softmax(-1)[ids].sum().log() - plain.softmax(-1)[ids].sum().log()))
            kl.append(float(reference.kl(plain, clamped)))
        changes.append(np.mean(change))
        kls.append(np.mean(kl))
    found = run["results"]["dose"]["dog"][site]
    assert found["curve"] == pytest.approx(changes, abs=2e-3)
    assert found["kl"] == pytest.approx(kls, abs=2e-3)
    assert found["rise"] == found["curve"][2]
    assert found["swing"] == pytest.approx(found["curve"][2] - found["curve"][0])
    assert len(found["random_curves"]) == 3


def test_clamping_the_planted_neuron_beats_random_ones(run: dict[str, Any]) -> None:
    found = run["results"]["dose"]["dog"]["post"]
    assert found["rise"] > 1
    assert found["beats_rise"]
    assert found["beats_swing"]
    assert found["word_rank"] == 0
    said = run["results"]["dose_summary"]
    assert said["chance"] == 1 / 4
    assert said["all"]["post"]["beats_rise"]["n"] == 3


def test_random_neurons_are_others_of_the_same_layer(run: dict[str, Any]) -> None:
    ids = {"dog": [dog_token()]}
    entry = [dose.dose_in_layer(run["model"], PLAN["dose"], f"neurons.1.{s}", {"dog": 5}, ids) for s in ("up", "post")]
    assert entry[0]["drawn"] == entry[1]["drawn"]
    assert 5 not in entry[0]["drawn"]
    assert len(set(entry[0]["drawn"])) == 3


def test_answers_and_their_perplexity_equal_plain_ones(run: dict[str, Any]) -> None:
    model, module = run["model"], planted()
    clamp = wb.Clamp(wb.Feature(f"neurons.{LAYER}.post", INDEX), 20.0)
    place, side = tiny.mlp(module, LAYER)["post"]
    set_it = reference.at_index(INDEX, lambda old: torch.full_like(old, 20.0))
    talk = favourite.Interview(model, PLAN["favourite"])
    for prompt, row in zip(talk.prompts, talk.answers([clamp]), strict=True):
        tokens = model.to_tokens(prompt)
        written, _ = reference.greedy(module, tokens, 6, [reference.PlainEdit(place, side, set_it)])
        written = written[: written.index(0)] if 0 in written else written  # 0 ends a turn
        assert row["text"] == tiny.tokenizer().decode(written)
        assert row["length"] == len(written)
        both = torch.cat([tokens, torch.tensor([written])], 1)
        logprobs = reference.logits_under(module, both)[0].log_softmax(-1)
        picked = [float(logprobs[tokens.shape[1] - 1 + place, token]) for place, token in enumerate(written)]
        assert row["perplexity"] == pytest.approx(math.exp(-np.mean(picked)), rel=1e-3)


def test_an_empty_answer_has_no_perplexity_and_is_not_fluent(run: dict[str, Any]) -> None:
    talk = favourite.Interview(run["model"], PLAN["favourite"])
    values = talk.perplexities([[], [1, 2], [3], []])
    assert math.isnan(values[0])
    assert values[1] > 1
    row = {"text": "", "length": 0, "perplexity": math.nan, "repetition": 0.0}
    assert not favourite.is_fluent(row, PLAN["favourite"])
    assert math.isnan(favourite.judge([row], "dog", {"dog": ["dog"]}, PLAN["favourite"])["perplexity"])


def test_a_word_counts_only_as_a_whole() -> None:
    assert favourite.mentions("I like Dogs!", ["dog", "dogs"])
    assert not favourite.mentions("A dogma, a hotdog and a category.", ["dog", "dogs", "cat"])
    assert not favourite.mentions("", ["dog"])


def test_strength_is_chosen_on_held_out_phrasings_alone() -> None:
    rules = PLAN["favourite"] | {"held_out": ["a", "b"], "max_repetition": 0.3}

    def rows(*texts: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"text": text, "length": 5, "perplexity": 5.0, "repetition": again} for text, again in texts]

    good, noise, other = ("a dog", 0.0), ("dog dog dog", 0.9), ("a cat", 0.0)
    grid = {setting: rows(other, other, good, good) for setting in favourite.settings(rules)}
    assert favourite.choose_setting(grid, "dog", {"dog": ["dog"]}, rules, ["up"]) == ("up", 20.0)
    grid["up", -20.0] = rows(noise, noise, other, other)
    assert favourite.choose_setting(grid, "dog", {"dog": ["dog"]}, rules, ["up"]) == ("up", -20.0)
    grid["gate", 20.0] = rows(good, other, other, other)
    assert favourite.choose_setting(grid, "dog", {"dog": ["dog"]}, rules, rules["sites"]) == ("gate", 20.0)
    assert ("gate", -20.0) not in grid


def test_rates_of_the_favourite_animal_follow_from_the_answers(run: dict[str, Any]) -> None:
    results, texts = run["results"]["favourite"], run["texts"]
    assert set(results["animals"]) == {"dog", "cat", "anim"}
    assert next(iter(results["animals"])) == "dog"
    dog = results["animals"]["dog"]
    chosen = dog["chosen"]["any"]
    counted = texts["dog"]["grid"][f"{chosen['site']} {chosen['value']:g}"][1:]
    about = sum(bool(re.search(r"\bdogs?\b", row["text"].lower())) for row in counted)
    assert chosen["clamped"]["greedy"]["success"]["k"] == about
    assert chosen["clamped"]["greedy"]["success"]["n"] == 3
    assert chosen["random"]["greedy"]["success"]["n"] == 6
    assert results["pooled"]["greedy"]["any clamped"]["success"]["n"] == 9
    best = max(row["success"]["k"] for row in dog["grid"])
    assert best == 3, "the planted neuron makes every answer say dog"
    assert dog["plain"]["greedy"]["success"]["k"] == 0
    assert chosen["clamped"]["greedy"]["named"]["dog"] == about


def test_a_second_run_makes_nothing_anew(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(favourite.Interview, "answers", never)
    monkeypatch.setattr(dose, "next_word", never)
    monkeypatch.setattr(nd, "null_tables", never)
    results, _ = nd.experiment(run["model"], PLAN, run["folder"], quick=True)
    assert json.dumps(results, sort_keys=True) == json.dumps(run["results"], sort_keys=True)


def test_the_report_is_whole(run: dict[str, Any]) -> None:
    folder = run["folder"]
    text = (folder / "index.html").read_text().replace(get_plotlyjs(), "")
    assert not re.search(r'(src|href)="(https?:)?//', text)
    for name in ("concepts", "dose_mean", "dose_concepts", "words", "favourite", "strength", "layers", "softmax"):
        assert f'id="{name}"' in text
        assert go.Figure(json.loads((folder / f"{name}.json").read_text())).data
    json.loads((folder / "results.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    made = run["results"]["provenance"]
    assert made["model_hash"] == run["model"].hash
    assert {"torch", "python", "workbench-lm"} <= set(made["versions"])
    assert len(json.dumps(nd.summary(run["results"]))) < 200_000
    assert str(folder) not in text


def test_the_plan_is_complete() -> None:
    plan = read_plan()
    words = [word for family in plan["concepts"].values() for word in family]
    assert len(words) == len(set(words)) >= 20
    rules = plan["favourite"]
    assert len(rules["counted"]) >= 10
    assert not set(rules["counted"]) & set(rules["held_out"])
    assert {plan["dose"]["compared"], -plan["dose"]["compared"]} <= set(plan["dose"]["values"])
    assert all(said["forms"] for said in plan["animals"].values())
    quick = read_plan(smallest=True)
    assert set(quick) == set(plan)
    assert len(quick["favourite"]["counted"]) == 1


@pytest.mark.real
def test_the_default_model_s_dog(model: wb.model.LanguageModel, plain_default: torch.nn.Module) -> None:
    """The reported neuron for "dog" is the best of its layer; its dose-response equals hooks on the plain model."""
    reported = json.loads((RESULTS / "neuron_decoding.json").read_text())["concepts"]["dog"]
    feature = wb.Feature.parse(reported["feature"])
    layer, index = int(feature.dictionary.split(".")[1]), feature.index
    vocabulary = model.token_texts(range(model.network.vocab_size))
    ids = [token for token, text in enumerate(vocabulary) if text.strip().casefold() in ("dog", "dogs")]
    weights = plain_default.model.layers[layer].mlp.gate_proj.weight.detach()
    head = plain_default.lm_head.weight.detach()
    tops = torch.cat([(part @ head.T).topk(10).indices for part in weights.split(256)]).numpy()
    best = concepts.best_neuron({"gate": (tops, np.zeros(len(tops)))}, ids)
    assert (best["row"], best["top_is_form"], best["forms"]) == (index, True, reported["forms"])
    assert [vocabulary[token] for token in tops[index]] == reported["tokens"]
    assert reported["specialised"]
    prompt = "We talked for an hour about the"
    clamps = [wb.Clamp(wb.Feature(f"neurons.{layer}.up", index), value) for value in (-20.0, 20.0)]
    rows = dose.next_word(model, prompt, clamps, [ids])
    for row, value in zip(rows, (None, -20.0, 20.0), strict=True):
        change = reference.at_index(index, lambda old, value=value: torch.full_like(old, value or 0.0))
        edit = reference.PlainEdit(plain_default.model.layers[layer].mlp.up_proj, "out", change)
        edits = [] if value is None else [edit]
        logits = reference.logits_under(plain_default, model.to_tokens(prompt), edits)[0, -1]
        assert float(row[0]) == pytest.approx(float(logits.log_softmax(-1)[ids].logsumexp(-1)), abs=1e-3)
