"""The highest scores of rows as wide as the vocabulary, found while their products are still in the processor's cache.

The scores come a strip of columns after another. Columns of a strip form blocks, and one pass finds each block's
extremes, with vector instructions; the k highest scores can only lie in the k blocks with the highest maxima.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.products import product
from workbench.model.lm_head import highest

STRIP = 4096
"""Columns of a strip."""
BLOCK = 64
"""Columns of a block."""


class ScoreSearch:
    """The extremes of the blocks of some rows of scores.

    Args:
        rows: number of rows.
        strips: the columns that are seen at a time, all of them together.
        device: of the scores.
        signs: 1 for the highest scores, -1 for the lowest.
    """

    def __init__(self, rows: int, strips: Sequence[slice], device: torch.device, signs: Sequence[int] = (1,)):
        self.strips = strips
        self._layout = _layout(tuple((strip.start, strip.stop) for strip in strips), device)
        self._extremes = {sign: torch.empty(rows, len(self._layout.columns), device=device) for sign in signs}

    def see(self, scores: Tensor, at: slice) -> None:
        """Note the extremes of a strip of scores, `[rows, columns]`.

        Args:
            scores: of one of the strips.
            at: the strip.
        """
        start = self._layout.first[at.start]
        whole = scores.shape[1] // BLOCK
        body = scores[:, : whole * BLOCK].unflatten(1, (BLOCK, whole))
        for sign, extremes in self._extremes.items():
            (torch.amax if sign > 0 else torch.amin)(body, 1, out=extremes[:, start : start + whole])

    def best(self, scores: Tensor, count: int, sign: int = 1) -> tuple[Tensor, Tensor]:
        """The highest scores of each row, best first, and their columns; of equal ones those of the lowest columns.

        Args:
            scores: all that `see` saw, `[rows, width]`.
            count: number of scores; all where a row has fewer.
            sign: -1 for the highest of `-scores`.

        Returns:
            Values `[rows, count]`, those of `sign * scores`, and columns of the same shape.
        """
        width, columns = scores.shape[1], self._layout.columns
        count, more = min(count, width), min(count + 1, width)  # one more tells whether the last is equal to others
        if len(columns) <= more:
            return highest(scores, (scores * sign).topk(more).indices, count, sign)
        chosen = self._extremes[sign].topk(more, largest=sign > 0, sorted=False).indices  # [rows, more]
        rest = self._layout.rest.expand(len(scores), -1)
        places = torch.cat([columns[chosen].flatten(1), rest], 1)  # [rows, more * BLOCK + rest]
        best = scores.gather(1, places).topk(more, largest=sign > 0, sorted=False).indices
        return highest(scores, places.gather(1, best), count, sign)


def strips(width: int, device: torch.device, start: int = 0) -> list[slice]:
    """Slices of so many columns from the first on: strips that stay in a processor's cache, one slice on cards."""
    size = STRIP if device.type == "cpu" else max(width, 1)
    return [slice(start + at, start + min(at + size, width)) for at in range(0, width, size)]


def searched(vectors: Tensor, rows: Tensor, out: Tensor, signs: Sequence[int] = (1,)) -> ScoreSearch:
    """The search among the products of vectors `[n, d_model]` with rows of an LM head `[m, d_model]`, put in `out`.

    Args:
        vectors: in float32.
        rows: in float32, on the vectors' device.
        out: memory for the products, `[n, m]`.
        signs: as `ScoreSearch`.
    """
    search = ScoreSearch(len(vectors), strips(len(rows), vectors.device), vectors.device, signs)
    for at in search.strips:
        search.see(product(vectors, rows[at], out[:, at]), at)
    return search


@dataclass(frozen=True)
class _Layout:
    """Where the blocks of strips lie."""

    columns: Tensor
    """The columns of each block, `[blocks, BLOCK]`."""
    rest: Tensor
    """The columns behind the last whole block of each strip, `[n]`."""
    first: dict[int, int]
    """The first block of a strip, by the strip's first column."""


@functools.lru_cache(8)
def _layout(ends: tuple[tuple[int, int], ...], device: torch.device) -> _Layout:
    """The layout of strips, given by their first column and the one behind their last."""
    blocks, rest, first, count = [], [], {}, 0
    for start, stop in ends:
        whole = (stop - start) // BLOCK
        first[start] = count
        count += whole
        blocks.append(start + torch.arange(whole * BLOCK, device=device).view(BLOCK, whole).T)
        rest.append(torch.arange(start + whole * BLOCK, stop, device=device))
    return _Layout(torch.cat(blocks), torch.cat(rest), first)
