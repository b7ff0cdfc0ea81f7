"""The tasks of `surgery.py`: naming the kind of a text, and the marks behind words."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from continual import CORPUS

import workbench as wb
from workbench.surgery.finetuning.batches import UNLABELLED, LabelBatch
from workbench.surgery.finetuning.labelling import label_batches

QUESTION = "\nThe kind of this text is:"


@dataclass(frozen=True)
class Kinds:
    """Texts of several kinds; the model says the kind after each text's beginning. `wb.surgery.heal` learns from it.

    Attributes:
        texts: the texts.
        kinds: of each text, one of `names`.
        names: all kinds.
        tokens: of each text that are shown.
    """

    texts: Sequence[str]
    kinds: Sequence[str]
    names: tuple[str, ...]
    tokens: int

    @property
    def hash(self) -> str:
        """SHA-256 over everything."""
        said = [list(self.texts), list(self.kinds), self.names, self.tokens]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def batches(
        self,
        model: wb.model.LanguageModel,
        context: int = 128,
        batch: int = 16,
        seed: int = 0,
        *,
        repeat: bool = False,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[LabelBatch]:
        """Rows of text and question; the only label is at the last token."""
        return label_batches(self._rows(model, seed, repeat, shuffle), batch, shard)

    def _rows(
        self, model: wb.model.LanguageModel, seed: int, repeat: bool, shuffle: bool
    ) -> Iterator[tuple[list[int], list[int]]]:
        answers = self.answers(model)
        question = model.to_tokens(QUESTION, start=False)[0].tolist()
        for epoch in itertools.count():
            order = np.random.default_rng([seed, epoch]).permutation(len(self.texts))
            for text in order.tolist() if shuffle else range(len(self.texts)):
                ids = model.to_tokens(self.texts[text])[0, : self.tokens].tolist() + question
                yield ids, [UNLABELLED] * (len(ids) - 1) + [answers[self.names.index(self.kinds[text])]]
            if not repeat:
                return

    def answers(self, model: wb.model.LanguageModel) -> list[int]:
        """The last token of each kind's name."""
        found = [int(model.to_tokens(f" {name}", start=False)[0, -1]) for name in self.names]
        assert len(set(found)) == len(found), "two kinds end in the same token"
        return found


@torch.inference_mode()
def accuracy(model: wb.model.LanguageModel, task: Kinds) -> float:
    """Share of the texts of which the likeliest kind is the right one."""
    answers, right = torch.tensor(task.answers(model)), 0
    for batch in task.batches(model, batch=8, shuffle=False):
        at = batch.labels != UNLABELLED
        mask = None if bool(batch.mask.all()) else batch.mask
        chosen = answers[model.network.run(batch.tokens, mask=mask)[at][:, answers].argmax(-1)]
        right += int((chosen == batch.labels[at]).sum())
    return right / len(task.texts)


def kinds(names: Sequence[str], tokens: int, tested: int, seed: int) -> tuple[Kinds, Kinds]:
    """Of the bundled texts those of some kinds: `tested` of each kind to test on, the rest to learn from."""
    rows = pq.read_table(CORPUS, columns=["text", "kind"]).to_pydict()
    parts: dict[str, list[tuple[str, str]]] = {"learn": [], "test": []}
    for name in names:
        texts = sorted({text for text, kind in zip(rows["text"], rows["kind"], strict=True) if kind == name})
        order = np.random.default_rng([seed, len(texts)]).permutation(len(texts)).tolist()
        parts["learn"] += [(texts[place], name) for place in order[tested:]]
        parts["test"] += [(texts[place], name) for place in order[:tested]]
    learn, test = (Kinds([t for t, _ in part], [k for _, k in part], tuple(names), tokens) for part in parts.values())
    return learn, test


def corpora_of(names: Sequence[str]) -> dict[str, wb.Corpus]:
    """The bundled texts of each of some kinds."""
    rows = pq.read_table(CORPUS, columns=["text", "kind"]).to_pydict()
    pairs: list[tuple[str, Any]] = list(zip(rows["text"], rows["kind"], strict=True))
    return {name: wb.Corpus([text for text, kind in pairs if kind == name], name) for name in names}
