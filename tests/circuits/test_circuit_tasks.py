"""Tasks: what the generators make, what is refused, and how well a task is done, against loops over prompts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

import workbench as wb
from workbench.circuits.task_evaluation import TaskResult, evaluate_task
from workbench.circuits.tasks import Task, TaskError, encode_task, from_jsonl, load_task, log_odds, save_task, to_jsonl
from workbench.circuits.tasks_generated import TASKS, docstring, greater_than, ioi

OWN = Task(
    "own",
    ["The dog ran to the", "The cat ran to the", "The dog ran to th"],
    ["The cat ran to the", "The dog ran to the", "The cat ran to th"],
    [["a", "b"], ["c"], ["d"]],
    [["e"], ["f", "g", "h"], ["i"]],
)


def alike(llama: wb.model.LanguageModel) -> Task:
    """The prompts of `OWN` that are of one length for the tiny model."""
    lengths = [llama.to_tokens(text).shape[1] for text in OWN.positives]
    return OWN[[row for row, length in enumerate(lengths) if length == lengths[0]]]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    task = replace(OWN, about="some\u2028words")
    assert from_jsonl(to_jsonl(task)) == task
    assert from_jsonl(to_jsonl(task)).about == "some\u2028words"
    save_task(task, tmp_path / "own.jsonl")
    assert load_task(tmp_path / "own.jsonl") == task
    for content, words in (("", "holds no pair of prompts"), (to_jsonl(task)[:-9], "is not a pair of prompts")):
        (tmp_path / "cut.jsonl").write_text(content)
        with pytest.raises(TaskError, match=rf"cut\.jsonl {words}"):
            load_task(tmp_path / "cut.jsonl")
    bare = json.dumps({"positive": "a b", "corrupted": "c b", "answers": " x", "wrong": [" y", " z"]})
    read = from_jsonl(bare + "\n\n", "named")
    assert (read.name, read.answers, read.wrong) == ("named", ((" x",),), ((" y", " z"),))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Line 1 is not a pair"),
        ('{"positive": "a"}', "Line 1 is not a pair"),
        ("[1]", "Line 1 is not a pair"),
        ('{"format": 9}', "format 9"),
        ("", "This text holds no pair of prompts"),
        ('{"positive": "", "corrupted": "c", "answers": "x", "wrong": "y"}', "none of them empty"),
        ('{"positive": "a", "corrupted": "c", "answers": [], "wrong": "y"}', "at least one text"),
        (
            '{"positive": 3, "corrupted": "c", "answers": "x", "wrong": "y"}',
            "Line 1 is not a pair .* positive should be a valid string",
        ),
        ('{"positive": "a", "corrupted": "c", "answers": [[1]], "wrong": "y"}', "Line 1 is not a pair .* answers"),
        ('{"format": 1, "task": 3}', "not the heading of a task: task should be a valid string"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_that_are_no_task(line: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        from_jsonl(line)


def test_what_a_task_refuses(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="2 positives, 1 corrupted"):
        Task("bad", ["a", "b"], ["c"], [["x"]] * 2, [["y"]] * 2)
    with pytest.raises(TaskError, match="the same number of tokens"):
        encode_task(llama, replace(OWN, positives=["The dog", "The dog ran to the", "The dog"]))
    with pytest.raises(TaskError, match="choose one that is one token"):
        encode_task(llama, replace(alike(llama), answers=[[" zebra"]] * len(alike(llama))))
    with pytest.raises(TaskError, match="among the right answers"):
        encode_task(
            llama, replace(alike(llama), answers=[["e"]] * len(alike(llama)), wrong=[["e"]] * len(alike(llama)))
        )
    with pytest.raises(TaskError, match="can't be read"):
        load_task(tmp_path / "none.jsonl")
    for make in (ioi, docstring):
        with pytest.raises(TaskError, match="single tokens"):
            make(llama)
    with pytest.raises(TaskError, match="whole number from 1"):
        greater_than(llama, 0)


def test_how_well_a_task_is_done_equals_a_loop(llama: wb.model.LanguageModel) -> None:
    task = alike(llama)
    done = evaluate_task(llama, task)
    odds, corrupted, gaps, right, first, chance = [], [], [], [], [], []
    for row in range(len(task)):
        ids = [
            [int(llama.to_tokens(one, start=False)[0, 0]) for one in some[row]] for some in (task.answers, task.wrong)
        ]
        for prompt, into in ((task.positives[row], odds), (task.corrupted[row], corrupted)):
            logits = llama(prompt)[0, -1].double()
            shares = logits.softmax(0)
            p, q = (sum(float(shares[one]) for one in some) for some in ids)
            into.append(math.log(p) - math.log(q))
            if into is odds:
                gaps.append(p - q)
                right.append(max(float(logits[one]) for one in ids[0]) > max(float(logits[one]) for one in ids[1]))
                first.append(int(logits.argmax()) in ids[0])
                chance.append(len(ids[0]) / (len(ids[0]) + len(ids[1])))
    count = len(task)
    assert done.logit_difference == pytest.approx(sum(odds) / count, abs=1e-4)
    assert done.corrupted == pytest.approx(sum(corrupted) / count, abs=1e-4)
    assert done.probability_difference == pytest.approx(sum(gaps) / count, abs=1e-6)
    assert (done.accuracy, done.first, done.chance) == (sum(right) / count, sum(first) / count, sum(chance) / count)
    assert done.examples == count


def test_prompts_that_corrupt_nothing_are_said_to() -> None:
    done = TaskResult(50, 1.0, 1.0, 0.1, 0.9, 0.5, 0.5)
    assert "corrupt what the answer depends on" in done.warning


def test_a_model_at_chance_is_said_to_be(llama: wb.model.LanguageModel) -> None:
    assert "no better than chance" in evaluate_task(llama, alike(llama)).warning


@pytest.mark.parametrize(
    ("accuracy", "examples", "said"),
    [
        (0.5, 50, "no better than chance"),
        (1.0, 4, "too few prompts"),
        (1.0, 5, ""),
        (0.6, 50, "chance"),
        (0.64, 50, ""),
    ],
)
def test_when_a_task_is_at_chance(accuracy: float, examples: int, said: str) -> None:
    """By guessing 4 of 4 are right once in 16 times, 5 of 5 once in 32; 31 of 50 and more with 5.9%, 32 with 3.2%."""
    done = TaskResult(examples, 1.0, 0.0, 0.1, accuracy, 0.0, 0.5)
    assert said in done.warning
    assert done.at_chance == bool(said)


def test_log_odds_of_one_against_one_is_the_logit_difference(llama: wb.model.LanguageModel) -> None:
    encoded = encode_task(llama, Task("one", ["The dog"], ["The cat"], ["a"], ["b"]))
    logits = torch.randn(1, tiny.VOCAB)
    wanted = logits[0, encoded.answers[0, 0]] - logits[0, encoded.wrong[0, 0]]
    assert float(log_odds(logits, encoded)[0]) == pytest.approx(float(wanted), abs=1e-5)


def test_an_answer_that_is_named_twice_counts_once(llama: wb.model.LanguageModel) -> None:
    once, twice = (
        encode_task(llama, Task("one", ["The dog"], ["The cat"], [answers], [["b", "b"]]))
        for answers in (["a", "c"], ["a", "c", "a"])
    )
    logits = torch.randn(1, tiny.VOCAB)
    assert torch.equal(log_odds(logits, once), log_odds(logits, twice))
    assert once.wrong.shape == (1, 1)


@pytest.mark.real
@pytest.mark.parametrize("name", list(TASKS))
def test_the_default_model_does_what_is_generated(model: wb.model.LanguageModel, name: str) -> None:
    task = TASKS[name](model, 8, 3)
    assert task == TASKS[name](model, 8, 3) != TASKS[name](model, 8, 4)
    assert len(set(task.positives)) == len(task) == 8
    for row in range(8):
        changed = model.to_tokens(task.positives[row])[0] != model.to_tokens(task.corrupted[row])[0]
        assert 1 <= int(changed.sum()) <= 9
        assert not set(task.answers[row]) & set(task.wrong[row])
    done = evaluate_task(model, task)
    assert not done.warning
    assert done.accuracy > 0.85
    assert done.logit_difference > done.corrupted + 2
