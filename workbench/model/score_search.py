"""The highest scores of rows as wide as the vocabulary, found while their products are still in the processor's cache.

The scores come a strip of columns after another. Columns of a strip form blocks, and one pass finds each block's
extremes, with vector instructions; the k highest scores can only lie in the k blocks with the highest maxima.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.core.products import product
from workbench.model.lm_head import highest

STRIP = 4096
"""Columns of a strip; a multiple of `BLOCK`."""
BLOCK = 64
"""Columns of a block."""


class ScoreSearch:
    """The extremes of the blocks of some rows of scores.

    Args:
        rows: number of rows.
        width: number of columns.
        device: of the scores.
        signs: 1 for the highest scores, -1 for the lowest.
    """

    def __init__(self, rows: int, width: int, device: torch.device, signs: Sequence[int] = (1,)):
        self.width = width
        self.strip = STRIP if device.type == "cpu" else width
        self._columns = _columns(width, self.strip, device)
        blocks = len(self._columns)
        self._extremes = {sign: torch.empty(rows, blocks, device=device) for sign in signs}

    def strips(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """The strips of columns between two multiples of `STRIP`, or to the end."""
        return strips(start, self.width if stop is None else stop, self.strip)

    def see(self, scores: Tensor, at: slice) -> None:
        """Note the extremes of a strip of scores, `[rows, columns]`.

        Args:
            scores: one of `strips`, whole.
            at: its columns.
        """
        whole = scores.shape[1] // BLOCK
        body = scores[:, : whole * BLOCK].unflatten(1, (BLOCK, whole))
        place = slice(at.start // BLOCK, at.start // BLOCK + whole)
        for sign, extremes in self._extremes.items():
            (torch.amax if sign > 0 else torch.amin)(body, 1, out=extremes[: len(scores), place])

    def best(self, scores: Tensor, count: int, sign: int = 1) -> tuple[Tensor, Tensor]:
        """The highest scores of each row, best first, and their columns; of equal ones those of the lowest columns.

        Args:
            scores: all that `see` saw, `[rows, width]`.
            count: number of scores; all where a row has fewer.
            sign: -1 for the highest of `-scores`.

        Returns:
            Values `[rows, count]`, those of `sign * scores`, and columns of the same shape.
        """
        count, more = min(count, self.width), min(count + 1, self.width)  # one more tells whether the last is equal
        blocks = len(self._columns)
        if blocks <= more:
            return highest(scores, (scores * sign).topk(more).indices, count, sign)
        extremes = self._extremes[sign][: len(scores)]
        chosen = extremes.topk(more, largest=sign > 0, sorted=False).indices  # [rows, more]
        rest = torch.arange(blocks * BLOCK, self.width, device=scores.device).expand(len(scores), -1)
        places = torch.cat([self._columns[chosen].flatten(1), rest], 1)  # [rows, more * BLOCK + rest]
        best = scores.gather(1, places).topk(more, largest=sign > 0, sorted=False).indices
        return highest(scores, places.gather(1, best), count, sign)


def strips(start: int, stop: int, width: int = STRIP) -> Iterator[slice]:
    """Slices of so many columns, one strip after another."""
    return (slice(at, min(at + width, stop)) for at in range(start, stop, max(width, 1)))


def searched(vectors: Tensor, rows: Tensor, out: Tensor, signs: Sequence[int] = (1,)) -> ScoreSearch:
    """The search among the products of vectors `[n, d_model]` with rows of an LM head `[m, d_model]`, put in `out`.

    Args:
        vectors: in float32.
        rows: in float32, on the vectors' device.
        out: memory for the products, `[n, m]`.
        signs: as `ScoreSearch`.
    """
    search = ScoreSearch(len(vectors), len(rows), vectors.device, signs)
    for at in search.strips():
        search.see(product(vectors, rows[at], out[:, at]), at)
    return search


@functools.lru_cache(4)
def _columns(width: int, strip: int, device: torch.device) -> Tensor:
    """The columns of each block, `[blocks, BLOCK]`; those behind the last whole block of the last strip are in none."""
    found = []
    for at in strips(0, width, strip):
        count = (at.stop - at.start) // BLOCK
        inside = torch.arange(count * BLOCK, device=device).view(BLOCK, count).T
        found.append(at.start + inside)
    return torch.cat(found) if found else torch.empty(0, BLOCK, dtype=torch.long, device=device)
