"""The LM head, read in float32 a piece of the vocabulary at a time.

The head of a large model is its largest matrix: in 16 bits 128,256 × 4,096 weights are 1 GiB, and a whole copy in
float32 is two more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CONVERTED = 1 << 24
"""Weights converted to float32 at a time, at most: 64 MiB."""
TOKENS = 1 << 17
"""Tokens in a piece at most, which bounds the scores that a product with a piece makes."""

FEW = 1024
"""Scores among which equal ones are looked for first."""


class LMHead:
    """The weights of an LM head.

    Every result is in float32, on one device. A head that is there in float32 is not copied.

    Args:
        weight: `[vocab, d_model]`, in the model's type.
        device: of the results; None for the weights' own.
    """

    def __init__(self, weight: Tensor, device: torch.device | None = None):
        self.weight = weight.detach()
        self.device = device or weight.device

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        """The number of values that the head reads, d_model."""
        return self.weight.shape[1]

    @property
    def piece(self) -> int:
        """The number of tokens in each of `pieces` but the last."""
        most = TOKENS if self.weight.dtype == torch.float32 else min(TOKENS, max(1, CONVERTED // self.width))
        return min(len(self), most)

    def rows(self, ids: int | slice | Sequence[int] | Tensor) -> Tensor:
        """The rows of tokens: `[d_model]` for one id, `[n, d_model]` for several or a slice."""
        there = ids.to(self.weight.device) if isinstance(ids, Tensor) else ids
        return self.weight[there].to(self.device).float()

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """The first token and the rows `[n, d_model]` of one piece of the vocabulary after another."""
        for start in range(0, len(self), self.piece):
            yield start, self.weight[start : start + self.piece].to(self.device).float()

    def products(self, vectors: Tensor) -> Tensor:
        """The product of each token's row with float32 vectors `[..., d_model]`: `[..., vocab]`, without a bias."""
        vectors = vectors.to(self.device)
        parts = [rows @ vectors if vectors.ndim == 1 else vectors @ rows.T for _, rows in self.pieces()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def combination(self, shares: Tensor) -> Tensor:
        """The sum of all tokens' rows, each times its share `[vocab]`: `[d_model]`."""
        parts = [rows.T @ shares[start : start + len(rows)] for start, rows in self.pieces()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def highest(scores: Tensor, candidates: Tensor, count: int, sign: int = 1) -> tuple[Tensor, Tensor]:
    """The highest scores of each row, best first, and their columns; of equal ones the lowest columns, in order.

    Args:
        scores: `[rows, width]`.
        candidates: the columns of the `count + 1` highest of each row in any order, `[rows, count + 1]`; which ones of
            equal scores does not matter. All columns where there are no more than `count`.
        count: number of scores.
        sign: -1 for the highest of `-scores`.

    Returns:
        Values `[rows, count]`, those of `sign * scores`, and columns of the same shape.
    """
    columns = candidates.sort(-1).values
    values, order = (scores.gather(1, columns) * sign).sort(dim=-1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if columns.shape[1] > count:
        lowest = values[:, count - 1]
        for row in (lowest == values[:, count]).nonzero()[:, 0].tolist():  # one more is equal to the last
            above = int((values[row] > lowest[row]).sum())
            columns[row, above:count] = _first_equal(scores[row], lowest[row] * sign, count - above)
    return values[:, :count], columns[:, :count]


def _first_equal(scores: Tensor, value: Tensor, count: int) -> Tensor:
    """The first `count` places `[count]` at which scores `[width]` have a value that so many of them have."""
    few = (scores[:FEW] == value).nonzero()[:count, 0]  # of a row of zeros all are equal
    return few if len(few) == count else (scores == value).nonzero()[:count, 0]


def merged(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The highest of two lists of scores and tokens `[..., n]`, best first; of equal ones those of the first list.

    Args:
        best: scores and tokens of what came before, best first; None for nothing.
        more: those of the next piece of the vocabulary.
        count: scores that are kept at most.
    """
    if best is None:
        return more
    scores, tokens = (torch.cat(both, -1) for both in zip(best, more, strict=True))
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    return scores[..., :count], tokens.gather(-1, order)[..., :count]
