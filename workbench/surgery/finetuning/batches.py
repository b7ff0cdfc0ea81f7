"""What a model has to predict in a batch: the next token, or labels of words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from workbench.corpus import TokenBatch
from workbench.training.text_batches import next_token_count

UNLABELLED = -100
"""Label of a token that has none."""


@dataclass(frozen=True)
class LabelBatch(TokenBatch):
    """Tokens that are to be labelled: at each of them the model says its label, not the next token."""

    labels: Tensor
    """`[batch, pos]` int64: the token that stands for the label, or `UNLABELLED`."""


def rows(batch: TokenBatch) -> Iterator[TokenBatch]:
    """The rows of a batch that have something to predict, each alone and without its padding, which is on the right."""
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        parts: dict[str, Tensor] = {
            one.name: getattr(batch, one.name)[row : row + 1] for one in fields(batch) if one.name != "texts"
        }
        alone = type(batch)(texts=batch.texts[row : row + 1], **{n: part[:, :length] for n, part in parts.items()})
        if len(predictions(alone)[2]):
            yield alone


def learned_tokens(batch: TokenBatch) -> int:
    """The tokens of a batch that count, in the rows that have something to predict."""
    if not isinstance(batch, LabelBatch):
        return next_token_count(batch)
    return int(batch.content[(batch.labels != UNLABELLED).any(1)].sum())


def predictions(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, where they are to be predicted at (bool, `[batch, pos]`), and what is to be predicted there."""
    if isinstance(batch, LabelBatch):
        at = batch.labels != UNLABELLED
        return batch.tokens, at, batch.labels[at]
    at = torch.zeros_like(batch.content)
    at[:, :-1] = batch.content[:, :-1] & batch.content[:, 1:]
    return batch.tokens, at, batch.tokens[:, 1:][at[:, :-1]]
