"""The task of naming the kind of a text, and the bundled texts of each kind."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import workbench as wb
from analyses.shared.corpus import texts_and_kinds
from workbench.surgery.finetuning.batches import UNLABELLED, LabelBatch
from workbench.surgery.finetuning.labelling import label_batches

QUESTION = "\nThe kind of this text is:"


@dataclass(frozen=True)
class Kinds:
    """Texts of several kinds; the label is the kind, behind each text's beginning. `wb.surgery.heal` learns from it.

    Attributes:
        texts: the texts.
        kinds: the kind of each text, one of `names`.
        names: all kinds.
        tokens: the number of tokens of each text that are shown.
    """

    texts: Sequence[str]
    kinds: Sequence[str]
    names: tuple[str, ...]
    tokens: int

    @property
    def hash(self) -> str:
        """SHA-256 over all attributes, in hex."""
        every = [list(self.texts), list(self.kinds), self.names, self.tokens]
        return hashlib.sha256(json.dumps(every).encode()).hexdigest()

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
        """Batches of rows of text and question; the only label of a row is at its last token."""
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
        tokens = [int(model.to_tokens(f" {name}", start=False)[0, -1]) for name in self.names]
        assert len(set(tokens)) == len(tokens), "two kinds end in the same token"
        return tokens


@torch.inference_mode()
def accuracy(model: wb.model.LanguageModel, task: Kinds) -> float:
    """Share of the texts whose most likely kind is the right one."""
    answers, right = torch.tensor(task.answers(model)), 0
    for batch in task.batches(model, batch=8, shuffle=False):
        at = batch.labels != UNLABELLED
        mask = None if bool(batch.mask.all()) else batch.mask
        chosen = answers[model.network.run(batch.tokens, mask=mask)[at][:, answers].argmax(-1)]
        right += int((chosen == batch.labels[at]).sum())
    return right / len(task.texts)


def kinds(names: Sequence[str], tokens: int, tested: int, seed: int) -> tuple[Kinds, Kinds]:
    """Tasks to learn from and to test on, of the bundled texts of some kinds; `tested` texts of each are tested on."""
    every = list(zip(*texts_and_kinds(), strict=True))
    parts: dict[str, list[tuple[str, str]]] = {"learn": [], "test": []}
    for name in names:
        texts = sorted({text for text, kind in every if kind == name})
        order = np.random.default_rng([seed, len(texts)]).permutation(len(texts)).tolist()
        parts["learn"] += [(texts[place], name) for place in order[tested:]]
        parts["test"] += [(texts[place], name) for place in order[:tested]]
    learn, test = (Kinds([t for t, _ in part], [k for _, k in part], tuple(names), tokens) for part in parts.values())
    return learn, test


def corpora_of(names: Sequence[str]) -> dict[str, wb.Corpus]:
    """The bundled texts of each of these kinds."""
    every = list(zip(*texts_and_kinds(), strict=True))
    return {name: wb.Corpus([text for text, kind in every if kind == name], name) for name in names}
