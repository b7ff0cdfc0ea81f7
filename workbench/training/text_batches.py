"""The token batches that a model learns from, and the tokens that each teaches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from workbench.corpus import TokenBatch
from workbench.evaluation.losses import predictions
from workbench.model.language_model import LanguageModel
from workbench.training.checkpoints import TrainingError
from workbench.training.processes import Processes

Counted = Callable[[TokenBatch], int]
"""The tokens of a batch that a model learns from; 0 where it has nothing to predict."""


def next_token_count(batch: TokenBatch) -> int:
    """The tokens that count in the rows with a prediction: one such token behind another."""
    predicting = predictions(batch.content).any(1)
    return int(batch.content[predicting].sum())


class TextBatches:
    """The batches of this process, in an endless order, without those that have nothing to predict.

    Batches hold as many tokens as their texts have. The steps that it takes to learn from `tokens` of them are counted
    at the first use, from the tokenised texts alone.

    Args:
        texts: a `Corpus`, or what has batches like it.
        model: whose tokenizer reads them.
        tokens: to learn from, over all processes, at least.
        context: positions of a window.
        batch: windows of a step, over all processes.
        seed: of the order of the texts.
        processes: those that learn together.
        counted: the tokens that a batch teaches.

    Raises:
        TrainingError: no batch has anything to predict.
    """

    def __init__(
        self,
        texts: Any,
        model: LanguageModel,
        tokens: int,
        *,
        context: int,
        batch: int,
        seed: int,
        processes: Processes,
        counted: Counted = next_token_count,
    ):
        self.tokens, self.processes, self.counted = tokens, processes, counted
        rows = max(batch // processes.count, 1)

        def start(rank: int) -> Iterator[TokenBatch]:
            return texts.batches(model, context, rows, seed=seed, repeat=True, shard=(rank, processes.count))

        self._start = start
        self._after: list[int] = []
        if not any(map(counted, texts.batches(model, context, rows, seed=seed))):
            raise TrainingError(
                "The texts hold nothing to learn from: no label, or no two tokens in a row that count; give others."
            )

    def __iter__(self) -> Iterator[TokenBatch]:
        return filter(self.counted, self._start(self.processes.rank))

    @property
    def steps(self) -> int:
        """Steps until so many tokens are learned from."""
        return len(self._sums())

    def tokens_after(self, step: int) -> int:
        """The tokens that the first `step` steps learn from, over all processes."""
        return self._sums()[step - 1] if step else 0

    def _sums(self) -> list[int]:
        """Tokens learned from after each step."""
        if not self._after:
            each = [filter(None, map(self.counted, self._start(rank))) for rank in range(self.processes.count)]
            for total in itertools.accumulate(map(sum, zip(*each, strict=False))):
                self._after.append(total)
                if total >= self.tokens:
                    break
        return self._after
