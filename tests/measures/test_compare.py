"""Comparison and dose-response against separate runs of the plain model with and without hooks."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import reference
import tiny
import torch
from reference import PlainEdit, at_index, logits_under
from torch import Tensor

import workbench as wb
from workbench.evaluation import repetition
from workbench.measures.comparison import CHUNK, random_twins
from workbench.measures.dose_response import ROWS

PROMPT = "The dog ran to the river"
NAMES = ["llama", "gpt2", "mistral"]
LONG = 2 * CHUNK + 5
"""Three chunks of the judge, the last one short."""


def edits(rule: Any = "all") -> list[Any]:
    return [wb.Clamp("neurons.1.post:7", 2.5, positions=rule), wb.Scale("neurons.0.up:3", -1.0)]


def plain_edits(module: Any, rule: Any = "all") -> list[PlainEdit]:
    """The same as hooks on the plain model."""
    clamp, scale = tiny.mlp(module, 1)["post"], tiny.mlp(module, 0)["up"]
    return [
        PlainEdit(*clamp, at_index(7, lambda old: torch.full_like(old, 2.5)), rule),
        PlainEdit(*scale, at_index(3, lambda old: -old)),
    ]


def logits_of_text(module: Any, prompt: Tensor, text: list[int], hooks: list[PlainEdit]) -> Tensor:
    """Logits for each token of a text that follows a prompt, `[len(text), vocab]`, by one full pass."""
    whole = torch.cat([prompt, torch.tensor([text], dtype=torch.long)], 1)
    return logits_under(module, whole, hooks, prompt.shape[1])[0, prompt.shape[1] - 1 : -1]


@pytest.mark.parametrize(
    ("rule", "length"), [("all", 1), ("all", LONG), ("prompt", 5), ("generated", CHUNK + 1), ((2, 3), CHUNK)], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_comparison_equals_brute_force(zoo, name: str, rule: Any, length: int) -> None:
    model, module = zoo[name], tiny.build(name)
    prompt = model.to_tokens(PROMPT)
    both = wb.compare(model, PROMPT, edits(rule), length, stop=False, top=7)

    baseline = model.generate(PROMPT, length, stop=False)
    edited = model.generate(PROMPT, length, interventions=edits(rule), stop=False)
    assert both.prompt == PROMPT
    for found, alone in ((both.baseline, baseline), (both.edited, edited)):
        assert (found.tokens, found.text, found.stopped) == (alone.tokens, alone.text, alone.stopped)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)

    hooks = plain_edits(module, rule)
    plain_on_plain = logits_of_text(module, prompt, baseline.tokens, [])
    edited_on_plain = logits_of_text(module, prompt, baseline.tokens, hooks)
    assert both.kl == pytest.approx(reference.kl(plain_on_plain, edited_on_plain).tolist(), abs=1e-4)
    plain_on_edited = logits_of_text(module, prompt, edited.tokens, [])
    edited_on_edited = logits_of_text(module, prompt, edited.tokens, hooks)
    (side,) = both.sides
    assert side.kl_own == pytest.approx(reference.kl(plain_on_edited, edited_on_edited).tolist(), abs=1e-4)
    assert len(both.kl) == len(side.kl_own) == length
    assert max(both.kl) > 1e-2

    for perplexity, logits, tokens in (
        (both.baseline_perplexity, plain_on_plain, baseline.tokens),
        (both.edited_perplexity, plain_on_edited, edited.tokens),
    ):
        surprise = [-float(row.log_softmax(-1)[token]) for row, token in zip(logits, tokens, strict=True)]
        assert perplexity == pytest.approx(math.exp(sum(surprise) / len(surprise)), rel=1e-3)

    before, after = plain_on_plain.softmax(-1).mean(0), edited_on_plain.softmax(-1).mean(0)
    moved = (after - before).abs().sort(descending=True)
    changes = [abs(change.after - change.before) for change in both.top_changes]
    assert changes == pytest.approx(moved.values[:7].tolist(), abs=1e-5)
    for change in both.top_changes:
        assert change.before == pytest.approx(float(before[change.token]), abs=1e-5)
        assert change.after == pytest.approx(float(after[change.token]), abs=1e-5)
        assert change.text == tiny.tokenizer().decode([change.token])


def test_texts_that_end_early_are_judged_to_their_end(tiny_cache) -> None:
    """One side stops in the first chunk, the other in the second or not at all."""
    free = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    base = free.generate(PROMPT, LONG, stop=False).tokens
    other = free.generate(PROMPT, LONG, interventions=edits(), stop=False).tokens
    for text, rest in ((base, other), (other, base)):
        end = next(token for token in text[3:CHUNK] if token not in text[:3] and token not in rest[: CHUNK + 2])
        module = tiny.build("llama", eos_token_id=end)
        model = wb.load_model(module, tokenizer=tiny.tokenizer())
        both = wb.compare(model, PROMPT, edits(), LONG)
        for found, how in ((both.baseline, []), (both.edited, edits())):
            alone = model.generate(PROMPT, LONG, interventions=how)
            assert (found.tokens, found.stopped) == (alone.tokens, alone.stopped)
            assert len(found.logprobs) == len(found.tokens)
        assert {both.baseline.stopped, both.edited.stopped} >= {"end"}
        assert len(both.baseline.tokens) != len(both.edited.tokens)
        prompt = model.to_tokens(PROMPT)
        hooks = plain_edits(module)
        plain = logits_of_text(module, prompt, both.baseline.tokens, [])
        moved = logits_of_text(module, prompt, both.baseline.tokens, hooks)
        assert both.kl == pytest.approx(reference.kl(plain, moved).tolist(), abs=1e-4)
        before, after = plain.softmax(-1).mean(0), moved.softmax(-1).mean(0)
        first = both.top_changes[0]
        assert first.before == pytest.approx(float(before[first.token]), abs=1e-5)
        assert first.after - first.before == pytest.approx(
            float((after - before)[(after - before).abs().argmax()]), abs=1e-5
        )
        plain = logits_of_text(module, prompt, both.edited.tokens, [])
        moved = logits_of_text(module, prompt, both.edited.tokens, hooks)
        assert both.sides[0].kl_own == pytest.approx(reference.kl(plain, moved).tolist(), abs=1e-4)


def test_a_text_that_ends_at_once_is_empty_and_counts_nothing(tiny_cache) -> None:
    free = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    end = free.generate(PROMPT, 1, stop=False).tokens[0]
    model = wb.load_model(tiny.build("llama", eos_token_id=end), tokenizer=tiny.tokenizer())
    both = wb.compare(model, PROMPT, edits(), 6)
    assert (both.baseline.tokens, both.baseline.text, both.baseline.stopped) == ([], "", "end")
    assert both.kl == []
    assert both.top_changes == []
    assert math.isnan(both.baseline_perplexity)
    assert both.edited.tokens == model.generate(PROMPT, 6, interventions=edits()).tokens


@pytest.mark.parametrize(
    "nothing", [[], [wb.Scale("neurons.1.post:7", 1.0)], [wb.Steer("neurons.1.up:7", 0.0)]], ids=str
)
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_without_an_edit_the_sides_are_one(llama, nothing: list[Any], temperature: float) -> None:
    both = wb.compare(llama, PROMPT, nothing, LONG, stop=False, sampling=wb.model.Sampling(temperature, seed=3))
    assert both.edited.tokens == both.baseline.tokens
    assert both.edited.text == both.baseline.text
    assert max(both.kl) < 1e-6
    assert both.edited_perplexity == pytest.approx(both.baseline_perplexity, rel=1e-4)
    assert all(abs(change.after - change.before) < 1e-6 for change in both.top_changes)


def test_sampled_sides_draw_as_each_would_alone(llama) -> None:
    sampling = wb.model.Sampling(1.0, top_k=50, seed=11)
    both = wb.compare(llama, PROMPT, edits(), LONG, stop=False, sampling=sampling)
    assert both.baseline.tokens == llama.generate(PROMPT, LONG, sampling=sampling, stop=False).tokens
    alone = llama.generate(PROMPT, LONG, sampling=sampling, interventions=edits(), stop=False)
    assert both.edited.tokens == alone.tokens


def test_control_changes_other_neurons_of_the_same_place_equally(llama) -> None:
    given = [*edits("prompt"), wb.Ablate("neurons.2.gate:5"), wb.Steer("neurons.2.gate:5", 0.5, positions=[1])]
    for seed in range(6):
        twins = random_twins(llama, given, seed)
        for twin, one in zip(twins, given, strict=True):
            assert type(twin) is type(one)
            assert (twin.settings(), twin.positions) == (one.settings(), one.positions)
            assert twin.feature.dictionary == one.feature.dictionary
            assert twin.feature.index != one.feature.index
        assert twins == random_twins(llama, given, seed)
    assert len({str(random_twins(llama, given, seed)) for seed in range(6)}) == 6


def test_random_twins_are_drawn_from_all_other_neurons(llama) -> None:
    drawn = {random_twins(llama, [wb.Clamp("neurons.1.gate:7", 1.0)], seed)[0].feature.index for seed in range(600)}
    assert drawn == set(range(48)) - {7}


def test_control_is_judged_like_the_edited_side(llama) -> None:
    module, prompt = tiny.build("llama"), llama.to_tokens(PROMPT)
    given = [wb.Clamp("neurons.1.post:7", 5.0)]
    both = wb.compare(llama, PROMPT, given, LONG, stop=False, control=True, seed=4)
    (twin,) = random_twins(llama, given, 4)
    alone = wb.compare(llama, PROMPT, given, LONG, stop=False)
    assert wb.compare(llama, PROMPT, given, 3).control is None
    assert both.edited.tokens == alone.edited.tokens
    assert both.kl == pytest.approx(alone.kl, abs=1e-5)
    control = both.control
    assert control is not None
    assert control.generation.tokens == llama.generate(PROMPT, LONG, interventions=[twin], stop=False).tokens
    change = at_index(twin.feature.index, lambda old: torch.full_like(old, 5.0))
    hooks = [PlainEdit(*tiny.mlp(module, 1)["post"], change)]
    plain = logits_of_text(module, prompt, both.baseline.tokens, [])
    moved = logits_of_text(module, prompt, both.baseline.tokens, hooks)
    assert control.kl == pytest.approx(reference.kl(plain, moved).tolist(), abs=1e-4)


def test_interventions_around_the_call_hold_on_both_sides(llama) -> None:
    outer, inner = [wb.Clamp("neurons.0.gate:11", 6.0)], edits()
    with llama.intervening(outer):
        both = wb.compare(llama, PROMPT, inner, LONG, stop=False)
    assert both.baseline.tokens == llama.generate(PROMPT, LONG, interventions=outer, stop=False).tokens
    assert both.edited.tokens == llama.generate(PROMPT, LONG, interventions=outer + inner, stop=False).tokens
    module, prompt = tiny.build("llama"), llama.to_tokens(PROMPT)
    around = [PlainEdit(*tiny.mlp(module, 0)["gate"], at_index(11, lambda old: torch.full_like(old, 6.0)))]
    plain = logits_of_text(module, prompt, both.baseline.tokens, around)
    moved = logits_of_text(module, prompt, both.baseline.tokens, around + plain_edits(module))
    assert both.kl == pytest.approx(reference.kl(plain, moved).tolist(), abs=1e-4)


def test_steps_show_the_texts_as_they_come(llama) -> None:
    steps = wb.measures.compare_steps(llama, PROMPT, edits(), LONG, stop=False, control=True)
    rows = ["", "", ""]
    seen = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as ended:
            both = ended.value
            break
        seen += 1
        rows = [text + piece for text, piece in zip(rows, step.pieces, strict=True)]
    assert seen == LONG
    assert rows == [both.baseline.text, both.edited.text, both.control.generation.text]


def test_a_comparison_can_be_written_down(llama) -> None:
    both = wb.compare(llama, PROMPT, edits(), 5, stop=False, control=True)
    said = json.loads(json.dumps(both.to_dict(), allow_nan=False))
    assert said["baseline"]["tokens"] == both.baseline.tokens
    assert said["sides"][0]["kl"] == both.kl
    assert len(said["sides"]) == 2


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], 0),
        ([1], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4], 0),
        ([1, 1, 1, 1], 1 / 2),
        ([5] * 12, 9 / 10),
        ([1, 2, 3, 1, 2, 3], 1 / 4),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], 4 / 7),
    ],
    ids=str,
)
def test_repetition_counted_by_hand(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)
    seen, again = [], 0
    for start in range(len(tokens) - 2):
        again += tokens[start : start + 3] in seen
        seen.append(tokens[start : start + 3])
    assert repetition(tokens) == pytest.approx(again / len(seen) if len(tokens) > 3 else 0)


@pytest.mark.real
def test_default_model_compared(model) -> None:
    """The paper's own case: the dog neuron turned up makes dogs likelier, a random neuron hardly moves anything."""
    prompt = model.chat_prompt("What is your favourite animal?")
    clamp = [wb.Clamp("neurons.29.gate:808", 40.0), wb.Clamp("neurons.29.up:808", 10.0)]
    both = wb.compare(model, prompt, clamp, 18, control=True)
    assert both.baseline.tokens == model.generate(prompt, 18).tokens
    assert both.edited.tokens == model.generate(prompt, 18, interventions=clamp).tokens
    assert both.control is not None
    assert sum(both.kl) > 5 * sum(both.control.kl)
    words = {change.text for change in both.top_changes if change.after > change.before}
    assert words & {" dog", " dogs", " cats", " cat", "dog"}


# --- dose and response


@pytest.mark.parametrize("word", [" dog", " xyz", "the wide water"])
@pytest.mark.parametrize("rule", ["all", "prompt", (1, 3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dose_response_equals_one_run_per_strength(zoo, name: str, rule: Any, word: str) -> None:
    model, module = zoo[name], tiny.build(name)
    values = [-20.0, -1.0, 0.0, 0.5, 3.0, 9.0, 20.0, 40.0, 80.0, 81.0]
    assert len(values) > ROWS, "several batches"
    found = wb.measures.dose_response(
        model, PROMPT, word, values, lambda v: [wb.Clamp("neurons.0.post:7", v, positions=rule)]
    )
    prompt, target = model.to_tokens(PROMPT), tiny.tokenizer()(word).input_ids

    def measured(hooks: list[PlainEdit]) -> float:
        scores = logits_of_text(module, prompt, target, hooks).log_softmax(-1)
        return sum(float(row[token]) for row, token in zip(scores, target, strict=True))

    def clamped(value: float) -> PlainEdit:
        return PlainEdit(*tiny.mlp(module, 0)["post"], at_index(7, lambda old: torch.full_like(old, value)), rule)

    assert (found.word, found.values) == (word, values)
    assert found.plain == pytest.approx(measured([]), abs=1e-4)
    assert found.logprobs == pytest.approx([measured([clamped(value)]) for value in values], abs=1e-4)
    assert max(found.logprobs) - min(found.logprobs) > 0.1
    assert found.to_dict()["logprobs"] == found.logprobs


def test_dose_response_with_several_edits_and_around(llama) -> None:
    module, prompt = tiny.build("llama"), llama.to_tokens(PROMPT)
    outer = [wb.Scale("neurons.0.up:3", -1.0)]

    def make(value: float) -> list[Any]:
        return [] if value == 0 else [wb.Clamp("neurons.1.post:7", value), wb.Steer("neurons.2.gate:1", value)]

    with llama.intervening(outer):
        found = wb.measures.dose_response(llama, PROMPT, " cat", [0.0, 5.0], make)
    target = tiny.tokenizer()(" cat").input_ids
    around = PlainEdit(*tiny.mlp(module, 0)["up"], at_index(3, lambda old: -old))
    inside = [
        PlainEdit(*tiny.mlp(module, 1)["post"], at_index(7, lambda old: torch.full_like(old, 5.0))),
        PlainEdit(*tiny.mlp(module, 2)["gate"], at_index(1, lambda old: old + 5.0)),
    ]
    expected = []
    for hooks in ([around], [around, *inside]):
        scores = logits_of_text(module, prompt, target, hooks).log_softmax(-1)
        expected.append(sum(float(row[token]) for row, token in zip(scores, target, strict=True)))
    assert found.plain == pytest.approx(expected[0], abs=1e-4)
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_dose_response_tells_its_progress(llama) -> None:
    told: list[float] = []
    wb.measures.dose_response(
        llama, PROMPT, " dog", list(range(20)), lambda v: [], progress=lambda share, what: told.append(share)
    )
    assert told == sorted(told)
    assert len(told) == math.ceil(21 / ROWS)
