"""How well a run of a model predicts the next tokens of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.model.edits import BoundEdit, Group, Run
from workbench.model.language_model import LanguageModel

PREDICTIONS = 256
"""Predictions looked at together: bounds the `[predictions, vocab]` matrices of log-probabilities."""


def logits_under(model: LanguageModel, tokens: Tensor, edits: Sequence[BoundEdit]) -> Tensor:
    """Logits `[batch, pos, vocab]`; padding on the right needs no mask: no token of a causal model looks there."""
    edits = [*model.bind([]), *model.network.prepare(edits)]
    return model.network.run(tokens, Run([Group(edits)]) if edits else None).float()


def losses(logits: Tensor, tokens: Tensor, pairs: Tensor) -> Tensor:
    """Cross-entropy in nats of each prediction that counts: `[predictions]`, row by row.

    Args:
        logits: `[batch, pos, vocab]`.
        tokens: `[batch, pos]`.
        pairs: which predictions count, `[batch, pos - 1]`.
    """
    found = []
    for row, at in some_places(pairs):
        of = logits[row, at]  # [n, vocab]
        found.append(of.logsumexp(-1) - of.gather(1, tokens[row, at + 1][:, None])[:, 0])
    return torch.cat(found) if found else torch.zeros(0)


def some_places(pairs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Row by row the positions that count, some at a time, in the order in which a mask selects them."""
    for row, counts in enumerate(pairs):
        for at in counts.nonzero()[:, 0].split(PREDICTIONS):
            if len(at):
                yield row, at
