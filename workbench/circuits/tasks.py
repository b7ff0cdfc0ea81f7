"""Tasks: prompts on which a model should know what comes next, and corrupted ones on which it can't.

A circuit is looked for by what differs between the two. Both prompts of a pair, and all pairs of a task, have the same
number of tokens, so that what a head does at a position can be put in its place in another prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing
from workbench.model.language_model import LanguageModel

FORMAT = 1


class TaskError(WorkbenchError):
    """A task that can't be used, or not with this model."""


@dataclass(frozen=True)
class Task:
    """Pairs of prompts with what should and what should not follow.

    Raises:
        TaskError: one class is empty, or the lists have unequal lengths.
    """

    name: str
    positives: Sequence[str]
    """Prompts on which the task can be done."""
    corrupted: Sequence[str]
    """For each the same prompt without what the task needs."""
    answers: Sequence[Sequence[str]]
    """For each positive prompt the next tokens that are right."""
    wrong: Sequence[Sequence[str]]
    """For each the tokens that they are held against."""
    about: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("positives", "corrupted"):
            object.__setattr__(self, name, _texts(getattr(self, name), name))
        for name in ("answers", "wrong"):
            listed = [[one] if isinstance(one, str) else one for one in getattr(self, name)]
            object.__setattr__(self, name, tuple(_texts(one, f"{name} of a prompt") for one in listed))
        counts = {name: len(getattr(self, name)) for name in ("positives", "corrupted", "answers", "wrong")}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise TaskError(f"Each positive prompt needs one corrupted prompt, its answers and wrong ones, not {said}.")

    def __len__(self) -> int:
        return len(self.positives)

    def __getitem__(self, rows: slice | Sequence[int]) -> Task:
        """The same task with some of its prompts."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        prompts = ([one[row] for row in chosen] for one in (self.positives, self.corrupted))
        ends = ([one[row] for row in chosen] for one in (self.answers, self.wrong))
        return Task(self.name, *prompts, *ends, about=self.about)


@dataclass(frozen=True)
class Encoded:
    """A task in the tokens of one model."""

    tokens: Tensor
    """`[n, pos]`: the positive prompts."""
    corrupted: Tensor
    """`[n, pos]`."""
    answers: Tensor
    """`[n, most]`: token ids of the right answers, -1 where there are fewer."""
    wrong: Tensor
    """`[n, most]`."""

    def rows(self, rows: slice | Tensor) -> Encoded:
        """Some of the prompts."""
        return Encoded(self.tokens[rows], self.corrupted[rows], self.answers[rows], self.wrong[rows])


def encode(model: LanguageModel, task: Task) -> Encoded:
    """The prompts and answers in the model's tokens, in an order that does not depend on the one they are given in.

    Raises:
        TaskError: prompts of unequal lengths or longer than the context, an answer that is not a single token, or one
            that is both right and wrong.
        PromptError: an empty prompt, or a model without a tokenizer.
    """
    both = as_tokens(model, [*task.positives, *task.corrupted])
    positives, corrupted = both.split(len(task))
    ids = [[[_single(model, text) for text in row] for row in rows] for rows in (task.answers, task.wrong)]
    for answers, wrong in zip(*ids, strict=True):
        if set(answers) & set(wrong):
            said = model.token_texts(sorted(set(answers) & set(wrong)))[0]
            raise TaskError(f"{said!r} is among the right answers and among the wrong ones of a prompt.")
    keys = [
        (*row, *other, *answers)
        for row, other, answers in zip(positives.tolist(), corrupted.tolist(), ids[0], strict=True)
    ]
    order = sorted(range(len(task)), key=lambda row: keys[row])
    answers, wrong = (_padded([rows[row] for row in order]) for rows in ids)
    return Encoded(positives[order], corrupted[order], answers, wrong)


def as_tokens(model: LanguageModel, prompts: Sequence[str] | Tensor) -> Tensor:
    """Prompts as one tensor `[n, pos]`.

    Raises:
        TaskError: there are none, they have unequal lengths, or are longer than the context.
    """
    if isinstance(prompts, str) or len(prompts) == 0:
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


def log_odds(logits: Tensor, encoded: Encoded) -> Tensor:
    """How much likelier the right answers are than the wrong ones: `log P(right) - log P(wrong)`, `[n]`, in nats.

    For one right and one wrong answer this is their logit difference.

    Args:
        logits: at the last position, `[n, vocab]`.
        encoded: the same prompts.
    """
    return _together(logits, encoded.answers) - _together(logits, encoded.wrong)


def save_task(task: Task, path: str | Path) -> None:
    """Write a task as JSON lines, whole or not at all: a heading, then one line for each pair of prompts."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(to_jsonl(task))


def to_jsonl(task: Task) -> str:
    """A task as JSON lines."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "task": task.name, "about": task.about}]
    said = asdict(task)
    for row in range(len(task)):
        lines.append(
            {
                "positive": said["positives"][row],
                "corrupted": said["corrupted"][row],
                "answers": list(said["answers"][row]),
                "wrong": list(said["wrong"][row]),
            }
        )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def load_task(path: str | Path) -> Task:
    """Read a task from a file of JSON lines; errors as in `from_jsonl`, and if there is no such file."""
    try:
        return from_jsonl(Path(path).read_text(), Path(path).stem)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} can't be read: {error}.") from error


def from_jsonl(text: str, name: str = "own") -> Task:
    """Read what `to_jsonl` wrote; the heading may be missing, and an answer may stand without a list.

    Raises:
        TaskError: a line that is no pair of prompts, or none at all.
    """
    about, columns = "", {"positive": [], "corrupted": [], "answers": [], "wrong": []}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            if "format" in said:
                if said["format"] != FORMAT:
                    raise TaskError(f"This task is in format {said['format']}, and this version reads format {FORMAT}.")
                name, about = str(said.get("task", name)), str(said.get("about", ""))
                continue
            for key, column in columns.items():
                column.append(said[key])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(
                f"Line {number} is not a pair of prompts ({error}): it needs positive, corrupted, answers and wrong, "
                'such as {"positive": "… John gave a drink to", "corrupted": "… Ann gave a drink to", '
                '"answers": [" Mary"], "wrong": [" John"]}.'
            ) from error
    return Task(name, *columns.values(), about=about)


def _texts(said: Any, what: str) -> tuple[str, ...]:
    if isinstance(said, str) or not isinstance(said, Sequence) or len(said) == 0:
        raise TaskError(f"The {what} are a list of at least one text, not {said!r}.")
    if not all(isinstance(one, str) and one for one in said):
        raise TaskError(f"The {what} are texts, none of them empty.")
    return tuple(said)


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


def _together(logits: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the summed exponentials of some logits, `[n]`."""
    return logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(1)
