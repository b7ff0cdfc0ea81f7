"""Labelling of words: at each word's last token a model predicts the word's label, as one token.

`punctuation` makes such a task from plain text: it removes the marks, and the mark behind a word is its label.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Shown
from workbench.corpus import Corpus
from workbench.evaluation.runs import windows_at_once
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.finetuning.batches import UNLABELLED, LabelBatch

MARKS = {",": "comma", ".": "stop", "?": "question", "!": "cry"}


@checked(SurgeryError)
@dataclass(frozen=True)
class Labelled(Shown):
    """Texts as words with labels, for `heal` and `label_scores`.

    Attributes:
        words: of each text.
        labels: of each word, as an index into `names`.
        names: the labels; the first one means no label.
    """

    words: Sequence[Sequence[str]]
    labels: Sequence[Sequence[Natural]]
    names: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.words) != len(self.labels) or any(map(lambda a, b: len(a) != len(b), self.words, self.labels)):
            raise SurgeryError("Each word of each text needs one label.")
        most = max((label for row in self.labels for label in row), default=-1)
        if most < 0 or most >= len(self.names):
            raise SurgeryError(f"Labels are at least one index into the {len(self.names)} names, from 0.")

    @property
    def hash(self) -> str:
        """SHA-256 over words and labels."""
        content = json.dumps([list(map(list, self.words)), list(map(list, self.labels)), self.names])
        return hashlib.sha256(content.encode()).hexdigest()

    @checked(SurgeryError)
    def ids(self, model: LanguageModel) -> Tensor:
        """The token that stands for each label, `[labels]`: the first one of its name.

        Raises:
            SurgeryError: two labels would have the same.
        """
        ids = [int(model.to_tokens(f" {name}", start=False)[0, -1]) for name in self.names]
        if len(set(ids)) < len(ids):
            raise SurgeryError(f"The labels {', '.join(self.names)} end in the same token; call them otherwise.")
        return torch.tensor(ids, device=model.device)

    @checked(SurgeryError)
    def batches(
        self,
        model: LanguageModel,
        context: Positive = 128,
        batch: Positive = 16,
        seed: Natural = 0,
        *,
        repeat: bool = False,
        shuffle: bool = True,
        shard: tuple[Natural, Positive] = (0, 1),
    ) -> Iterator[LabelBatch]:
        """Rows of whole words, each of one text, padded on the right; see `Corpus.batches`."""
        return label_batches(self._rows(model, context, seed, repeat, shuffle), batch, shard, model.device)

    def _rows(
        self, model: LanguageModel, context: int, seed: int, repeat: bool, shuffle: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Tokens and labels of one row after another."""
        names = self.ids(model).tolist()
        bos = getattr(model.tokenizer, "bos_token_id", None)
        start = [] if bos is None else [bos]
        for epoch in itertools.count():
            order = np.random.default_rng([seed, epoch]).permutation(len(self.words)) if shuffle else None
            for text in range(len(self.words)) if order is None else order.tolist():
                tokens, labels = list(start), [UNLABELLED] * len(start)
                for word, label in zip(self.words[text], self.labels[text], strict=True):
                    ids = model.to_tokens(f" {word}", start=False)[0].tolist()
                    if len(tokens) + len(ids) > context:
                        break
                    tokens += ids
                    labels += [UNLABELLED] * (len(ids) - 1) + [names[label]]
                if len(tokens) > len(start):
                    yield tokens, labels
            if not repeat:
                return


@checked(SurgeryError)
def punctuation(corpus: Corpus, words: Positive = 60, marks: Sequence[str] = (",", ".")) -> Labelled:
    """Texts in lower case without their marks; each word's label is the mark that stood behind it.

    Args:
        corpus: texts; those with characters other than letters, digits and plain marks inside words lose them.
        words: of each piece that a text is cut into; the first of a text only.
        marks: that are labels; others are taken out too and have no label.
    """
    rows, labels = [], []
    wanted = {mark: number for number, mark in enumerate(marks, 1)}
    for text in corpus.texts:
        pairs = re.findall(r"([A-Za-z0-9][A-Za-z0-9'’-]*)([^A-Za-z0-9]*)", text)[:words]
        if len(pairs) == words:
            rows.append([word.lower() for word, _ in pairs])
            labels.append([wanted.get(after[:1], 0) for _, after in pairs])
    if not rows:
        raise SurgeryError(f"No text of {corpus.name} has {words} words.")
    return Labelled(rows, labels, ("none", *(MARKS.get(mark, mark) for mark in marks)))


@dataclass(frozen=True)
class LabelScores(Shown):
    """Accuracy and F1 of a model's labels."""

    words: int
    accuracy: float
    """Share of the words with the right label."""
    f1: float
    """Of all labels but the first, taken together: harmonic mean of precision and recall."""

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data."""
        return {"words": self.words, "accuracy": self.accuracy, "f1": self.f1}


@checked(SurgeryError)
def label_scores(model: LanguageModel, texts: Labelled, *, context: Positive = 128, batch: Positive = 8) -> LabelScores:
    """The scores of a model on texts; its label of a word is the likeliest of the labels' tokens.

    Raises:
        SurgeryError: no word has a label.
    """
    ids = texts.ids(model)
    hits = right = claimed = true = words = 0
    with uninterrupted(), torch.inference_mode():
        for some in texts.batches(model, context, windows_at_once(model, context, batch), shuffle=False):
            at = some.labels != UNLABELLED
            mask = None if bool(some.mask.all()) else some.mask
            chosen = model.network.run(some.tokens, mask=mask)[at][:, ids].argmax(-1)
            wanted = (some.labels[at][:, None] == ids).int().argmax(-1)
            words += len(wanted)
            right += int((chosen == wanted).sum())
            hits += int(((chosen == wanted) & (wanted > 0)).sum())
            claimed, true = claimed + int((chosen > 0).sum()), true + int((wanted > 0).sum())
    if not words:
        raise SurgeryError("The texts hold no word with a label; give at least one that fits into the context.")
    return LabelScores(words, right / words, 2 * hits / max(claimed + true, 1))


def label_batches(
    rows: Iterator[tuple[list[int], list[int]]],
    batch: int,
    shard: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> Iterator[LabelBatch]:
    """Rows of tokens and labels together, padded on the right; see `Corpus.batches`.

    Args:
        rows: tokens, and as many labels: tokens that stand for one, or `UNLABELLED`.
        batch: rows of each.
        shard: (which, of how many) of the batches.
        device: of the batches; None for the processor.
    """
    rank, world = shard
    together = iter(lambda: list(itertools.islice(rows, batch)), [])
    return (_padded(some, device) for some in itertools.islice(together, rank, None, world))


def _padded(rows: Sequence[tuple[list[int], list[int]]], device: torch.device | None) -> LabelBatch:
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([row + [UNLABELLED] * (longest - len(row)) for _, row in rows])
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    mask = torch.arange(longest) < lengths[:, None]
    where = torch.arange(longest).expand_as(mask).masked_fill(~mask, -1)
    return LabelBatch(*(x.to(device) for x in (tokens, mask, mask, torch.arange(len(rows)), where, labels)))
