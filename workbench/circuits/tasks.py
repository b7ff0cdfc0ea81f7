"""Tasks: prompts whose next token is known, each with a corrupted prompt that lacks what the task needs.

A circuit is found by the difference between the two. All prompts of a task have the same number of tokens, so that a
head's output at a position can replace its output at the same position in another prompt.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from workbench.circuits.errors import TaskError
from workbench.core.checks import Floats, checked
from workbench.core.display import Shown, Tabular, columns
from workbench.core.files import replacing
from workbench.core.forms import as_form, parse_json, read_text
from workbench.model.language_model import LanguageModel

FORMAT = 1


def _joined(words: str | Sequence[str]) -> str:
    return words if isinstance(words, str) else " | ".join(words)


@checked(TaskError)
@dataclass(frozen=True)
class Task(Tabular):
    """Pairs of prompts with right and wrong next tokens.

    Raises:
        TaskError: an empty list or text, or lists of unequal lengths.
    """

    name: str
    positives: Sequence[str]
    """Prompts on which the task can be done."""
    corrupted: Sequence[str]
    """For each positive prompt the same prompt without what the task needs."""
    answers: Sequence[str | Sequence[str]]
    """For each positive prompt the right next tokens; a text for a single one becomes a list."""
    wrong: Sequence[str | Sequence[str]]
    """For each positive prompt the wrong next tokens, likewise."""
    about: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("positives", "corrupted"):
            object.__setattr__(self, name, _texts(getattr(self, name), name))
        for name in ("answers", "wrong"):
            listed = [[one] if isinstance(one, str) else one for one in getattr(self, name)]
            object.__setattr__(self, name, tuple(_texts(one, f"{name} of a prompt") for one in listed))
        counts = {name: len(getattr(self, name)) for name in ("positives", "corrupted", "answers", "wrong")}
        if len(set(counts.values())) > 1:
            words = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise TaskError(
                f"Each positive prompt needs one corrupted prompt, its answers and wrong ones, not {words}."
            )

    def __len__(self) -> int:
        return len(self.positives)

    def __getitem__(self, rows: slice | Sequence[int]) -> Task:
        """The task with some of its prompts."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        prompts = ([one[row] for row in chosen] for one in (self.positives, self.corrupted))
        ends = ([one[row] for row in chosen] for one in (self.answers, self.wrong))
        return Task(self.name, *prompts, *ends, about=self.about)

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each prompt."""
        answers, wrong = map(_joined, self.answers), map(_joined, self.wrong)
        return columns(prompt=self.positives, corrupted=self.corrupted, answers=answers, wrong=wrong)

    def _facts(self) -> Mapping[str, object]:
        return {"name": self.name, "about": self.about, "prompts": len(self.positives)}


@dataclass(frozen=True)
class EncodedTask(Shown):
    """A task in the tokens of one model."""

    tokens: Tensor
    """The positive prompts, `[n, pos]`."""
    corrupted: Tensor
    """The corrupted prompts, `[n, pos]`."""
    answers: Tensor
    """Token ids of the right answers, `[n, most]`; -1 behind the last of a prompt."""
    wrong: Tensor
    """Token ids of the wrong answers, `[n, most]`, likewise."""

    def rows(self, rows: slice | Tensor) -> EncodedTask:
        """The task with some of its prompts."""
        return EncodedTask(self.tokens[rows], self.corrupted[rows], self.answers[rows], self.wrong[rows])

    def to(self, device: torch.device) -> EncodedTask:
        """The task on a device."""
        return EncodedTask(*(one.to(device) for one in (self.tokens, self.corrupted, self.answers, self.wrong)))


@checked(TaskError)
def encode_task(model: LanguageModel, task: Task) -> EncodedTask:
    """A task in the model's tokens, its prompts sorted by their token ids.

    Raises:
        TaskError: prompts of unequal lengths, an answer that is not a single token, or one that is both right and
            wrong.
        PromptError: a prompt that is empty or longer than the context, or a model without a tokenizer.
    """
    both = prompt_tokens(model, [*task.positives, *task.corrupted])
    positives, corrupted = both.split(len(task))
    single = functools.partial(_single, model)
    # an answer that is named twice counts once
    ids = [[list(dict.fromkeys(map(single, row))) for row in rows] for rows in (task.answers, task.wrong)]
    for answers, wrong in zip(*ids, strict=True):
        if set(answers) & set(wrong):
            both_ways = model.token_texts(sorted(set(answers) & set(wrong)))[0]
            raise TaskError(f"{both_ways!r} is among the right answers and among the wrong ones of a prompt.")
    keys = [
        (*row, *other, *answers)
        for row, other, answers in zip(positives.tolist(), corrupted.tolist(), ids[0], strict=True)
    ]
    order = sorted(range(len(task)), key=lambda row: keys[row])
    answers, wrong = (_padded([rows[row] for row in order]).to(model.device) for rows in ids)
    return EncodedTask(positives[order], corrupted[order], answers, wrong)


def prompt_tokens(model: LanguageModel, prompts: Sequence[str] | Tensor) -> Tensor:
    """Prompts as one tensor `[n, pos]`.

    Raises:
        TaskError: no prompts, or prompts of unequal lengths.
        PromptError: a prompt that is empty or longer than the context.
    """
    if isinstance(prompts, str) or (isinstance(prompts, Tensor) and not prompts.ndim) or len(prompts) == 0:
        raise TaskError("Give a list with at least one prompt.")
    if isinstance(prompts, Tensor):
        rows = list(model.as_tokens(prompts))
    else:
        rows = [model.as_tokens(prompt)[0] for prompt in prompts]
    lengths = {len(row): place for place, row in enumerate(rows)}
    if len(lengths) > 1:
        (one, first), (other, second) = list(lengths.items())[:2]
        raise TaskError(
            f"All prompts need the same number of tokens, but {prompts[first]!r} has {one} and {prompts[second]!r} has "
            f"{other}; choose words that are as long."
        )
    return torch.stack(rows)


@checked(TaskError)
def log_odds(logits: Floats, encoded: EncodedTask) -> Tensor:
    """`log P(right) - log P(wrong)` of each prompt in nats, `[n]`.

    For one right and one wrong answer this is their logit difference.

    Args:
        logits: at the last position, `[n, vocab]`.
        encoded: the same prompts.
    """
    if logits.ndim != 2 or len(logits) != len(encoded.answers):
        raise TaskError(
            f"Logits are [{len(encoded.answers)}, vocab], one row for each prompt, not {list(logits.shape)}."
        )
    if (last := max(int(encoded.answers.max()), int(encoded.wrong.max()))) >= logits.shape[1]:
        raise TaskError(f"The logits are of {logits.shape[1]:,} tokens, and an answer is token {last:,}.")
    return _log_sum_exp(logits, encoded.answers) - _log_sum_exp(logits, encoded.wrong)


class SavedHeading(TypedDict):
    """The first line of a file."""

    format: int
    task: NotRequired[str]
    about: NotRequired[str]


class SavedPair(TypedDict):
    """Every other line of a file."""

    positive: str
    corrupted: str
    answers: str | list[str]
    wrong: str | list[str]


@checked(TaskError)
def save_task(task: Task, path: str | Path) -> None:
    """Write a task as JSON lines, whole or not at all: a heading, then one line for each pair of prompts.

    Raises:
        TaskError: the file can't be written, or something else than a task is there.
    """
    with replacing(Path(path), TaskError, form=SavedHeading | SavedPair) as temporary:
        temporary.write_text(to_jsonl(task), encoding="utf-8")


@checked(TaskError)
def to_jsonl(task: Task) -> str:
    """A task as JSON lines."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "task": task.name, "about": task.about}]
    plain = asdict(task)
    for row in range(len(task)):
        lines.append(
            {
                "positive": plain["positives"][row],
                "corrupted": plain["corrupted"][row],
                "answers": list(plain["answers"][row]),
                "wrong": list(plain["wrong"][row]),
            }
        )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@checked(TaskError)
def load_task(path: str | Path) -> Task:
    """The task in a file of JSON lines; errors as in `from_jsonl`, and for a file that can't be read."""
    return _from_lines(read_text(path, TaskError, "a task"), Path(path).stem, str(path))


@checked(TaskError)
def from_jsonl(text: str, name: str = "own") -> Task:
    """The task in the text that `to_jsonl` wrote; the heading may be missing, and a single answer needs no list.

    Raises:
        TaskError: a line that is no pair of prompts, a heading of another format, or no pair at all.
    """
    return _from_lines(text, name, "")


def _from_lines(text: str, name: str, file: str) -> Task:
    """The task in a text, which stands in a file where that is not empty."""
    of, about = f" of {file}" if file else "", ""
    pairs: list[SavedPair] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        complaint = f"Line {number}{of} is not a pair of prompts, such as {EXAMPLE}"
        content = parse_json(line, dict[str, Any], TaskError, complaint)
        if "format" in content:
            heading = as_form(content, SavedHeading, TaskError, f"Line {number}{of} is not the heading of a task")
            if heading["format"] != FORMAT:
                raise TaskError(
                    f"{file or 'This task'} is in format {heading['format']}, and this version reads format {FORMAT}."
                )
            name, about = heading.get("task", name), heading.get("about", "")
            continue
        pairs.append(as_form(content, SavedPair, TaskError, complaint))
    if not pairs:
        raise TaskError(f"{file or 'This text'} holds no pair of prompts; it needs lines such as {EXAMPLE}.")
    columns = {
        "positives": [pair["positive"] for pair in pairs],
        "corrupted": [pair["corrupted"] for pair in pairs],
        "answers": [pair["answers"] for pair in pairs],
        "wrong": [pair["wrong"] for pair in pairs],
    }
    try:
        return Task(name, **columns, about=about)
    except TaskError as wrong:
        raise TaskError(f"{file or 'This text'} is no task: {wrong}") from wrong


EXAMPLE = json.dumps(
    {
        "positive": "… John gave a drink to",
        "corrupted": "… Ann gave a drink to",
        "answers": [" Mary"],
        "wrong": [" John"],
    },
    ensure_ascii=False,
)
"""A line of a file, for the sentence of an error."""


def _texts(texts: Sequence[str], what: str) -> tuple[str, ...]:
    if len(texts) == 0:
        raise TaskError(f"The {what} are a list of at least one text, not an empty one.")
    if not all(texts):
        raise TaskError(f"The {what} are texts, none of them empty.")
    return tuple(texts)


def _single(model: LanguageModel, text: str) -> int:
    tokens = model.to_tokens(text, start=False)[0]
    if len(tokens) != 1:
        parts = " + ".join(map(repr, model.token_texts(tokens)))
        raise TaskError(
            f"The answer {text!r} is {len(tokens)} tokens for {model.name} ({parts}); choose one that is one token."
        )
    return int(tokens[0])


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    most = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in rows])


def _log_sum_exp(logits: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the summed exponentials of the logits of some tokens, `[n]`."""
    return logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(1)
