"""Sparse linear algebra for dictionaries: finding active latents, decoding them, and their weights' gradients.

With k of `width` latents active per row, only the encoder's product is dense. Decoding is a sparse matrix times the
directions: a weighted sum of decoder rows for each row of the batch. Both weight gradients are products with that
matrix turned round, a weighted sum of batch rows for each latent, once the entries are sorted by latent. The values'
gradient is a sampled dense-dense product: only the entries that exist are computed.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

_sampled_products = torch.ops.aten._embedding_bag_per_sample_weights_backward
"""The gradient of an embedding bag by its weights is the sampled dense-dense product; the last argument says "sum"."""

_threshold_backward = torch.ops.aten.threshold_backward.grad_input
"""The gradient of a ReLU, in one pass and in place."""

PIECE = 256
"""Rows of a dense matrix that are summed at a time, so that the results stay in the cache."""

WORTH_THREADS = 1 << 18
"""Searches among fewer numbers than this are not worth a second thread."""

CACHED = 5 << 19
"""Numbers that a thread searches at a time, at most."""

STRIP = 96
"""Columns of a dense matrix that a sparse one is multiplied with at a time: all rows of these fit in a core's cache."""

DENSE_SHARE = 1 / 16
"""With more than this share of the latents active, dense products are faster than sparse ones."""

with warnings.catch_warnings():  # torch says once per process that such tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.long), torch.tensor([]), (1, 1))


class Entries(Protocol):
    """The values of a batch's active latents; `[entries]` is `[n]` where they are a list, `[batch, width]` if dense."""

    pre: Tensor
    """Pre-activations of these entries, `[entries]`."""
    values: Tensor
    """What the activation function makes of them, `[entries]`."""

    @property
    def batch(self) -> int:
        """Number of rows."""
        ...

    def spread(self, per_latent: Tensor) -> Tensor:
        """A number for each latent `[width]`, brought to the entries: broadcasts with `[entries]`."""
        ...

    def per_latent(self, weights: Tensor) -> Tensor:
        """Sums of the weights `[entries]` over the batch, for each latent: `[width]`."""
        ...

    def where_active(self, slopes: Tensor) -> Tensor:
        """Slopes `[entries]` where the values are above 0, and 0 elsewhere; may write into what it gets."""
        ...

    def fired(self) -> Tensor:
        """In how many rows each latent's value is above 0: `[width]`, whole numbers."""
        ...

    def decode(self, directions: Tensor) -> Tensor:
        """Values times directions `[width, d]`: `[batch, d]`."""
        ...

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """For each entry its row `[batch, d]` times its latent's direction `[width, d]`: `[entries]`."""
        ...

    def value_sums(self, weights: Tensor) -> Tensor | None:
        """Sums of values times weights `[entries]` over the batch, for each latent `[width]`; None if costly."""
        ...

    def outer(self, weights: Tensor, rows: Tensor, out: Tensor) -> None:
        """For each latent the sum over the batch of weight `[entries]` times row `[batch, d]`, put in `out`:
        `[width, d]`."""
        ...


@dataclass
class SparseEntries:
    """Entries as flat lists, one row of the batch after another."""

    pre: Tensor
    values: Tensor
    latents: Tensor
    """Which latent, `[n]`."""
    rows: Tensor
    """Which row of the batch, `[n]`, ascending."""
    starts: Tensor
    """Where each row's entries begin, `[batch + 1]`, the last one n."""
    width: int

    @property
    def batch(self) -> int:
        """See `Entries`."""
        return len(self.starts) - 1

    def spread(self, per_latent: Tensor) -> Tensor:
        """See `Entries`."""
        return per_latent[self.latents]

    def per_latent(self, weights: Tensor) -> Tensor:
        """See `Entries`."""
        return weights.new_zeros(self.width).index_add_(0, self.latents, weights)

    def where_active(self, slopes: Tensor) -> Tensor:
        """See `Entries`."""
        return slopes * (self.values > 0)

    def fired(self) -> Tensor:
        """See `Entries`."""
        return self.per_latent((self.values > 0).float()).round().long()

    def decode(self, directions: Tensor) -> Tensor:
        """See `Entries`."""
        out = directions.new_empty(self.batch, directions.shape[1])
        return _product(self.starts, self.latents, self.values, directions, out)

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """See `Entries`."""
        return _sampled_products(rows, directions, self.latents, self.starts[:-1], self.rows, 0)

    def value_sums(self, weights: Tensor) -> Tensor:
        """See `Entries`."""
        return self.per_latent(self.values * weights)

    def only(self, mask: Tensor) -> SparseEntries:
        """Those of the entries where a mask `[n]` is true, whose values are their pre-activations."""
        values, rows = self.values[mask], self.rows[mask]
        starts = torch.searchsorted(rows, torch.arange(len(self.starts), device=rows.device))
        return SparseEntries(values, values, self.latents[mask], rows, starts, self.width)

    def outer(self, weights: Tensor, rows: Tensor, out: Tensor) -> None:
        """See `Entries`."""
        order, sorted_rows, starts = self._by_latent
        _product(starts, sorted_rows, weights[order], rows, out)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order that sorts entries by latent, their rows in that order, and where each latent's begin."""
        order = self.latents.int().sort(stable=True).indices  # 32-bit numbers sort twice as fast
        counts = torch.bincount(self.latents, minlength=self.width)
        return order, self.rows[order].int(), pad(counts.cumsum(0), (1, 0)).int()


@dataclass
class DenseEntries:
    """Entries as a full `[batch, width]` matrix, 0 where a latent is absent.

    Such a matrix is larger than any cache, and fresh memory for one costs as much as several passes over it. So values
    are made in the place of the pre-activations, slopes are changed in place, and sums are taken some rows at a time.
    """

    pre: Tensor
    """The values, once they are computed."""
    values: Tensor

    @property
    def batch(self) -> int:
        """See `Entries`."""
        return len(self.values)

    def spread(self, per_latent: Tensor) -> Tensor:
        """See `Entries`."""
        return per_latent

    def per_latent(self, weights: Tensor) -> Tensor:
        """See `Entries`."""
        return weights.sum(0)

    def where_active(self, slopes: Tensor) -> Tensor:
        """See `Entries`."""
        return _threshold_backward(slopes, self.values, 0, grad_input=slopes)

    def fired(self) -> Tensor:
        """See `Entries`."""
        total = self.values.new_zeros(self.values.shape[1])
        for some in self.values.split(PIECE):
            total += some.sign().sum(0)  # values are never below 0
        return total.round().long()

    def decode(self, directions: Tensor) -> Tensor:
        """See `Entries`."""
        return self.values @ directions

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """See `Entries`."""
        return rows @ directions.T

    def value_sums(self, weights: Tensor) -> None:
        """See `Entries`."""

    def outer(self, weights: Tensor, rows: Tensor, out: Tensor) -> None:
        """See `Entries`."""
        torch.mm(weights.T, rows, out=out)


def _product(starts: Tensor, columns: Tensor, values: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """A sparse matrix times a dense one `[columns, d]`, in `out`: the values of the matrix's row r, and their columns,
    are those from `starts[r]` to `starts[r + 1]`."""
    matrix = torch.sparse_csr_tensor(starts.int(), columns.int(), values, (len(out), len(rows)))
    width = STRIP if out.device.type == "cpu" else max(out.shape[1], 1)
    for strip, of_rows in zip(out.split(width, 1), rows.split(width, 1), strict=True):
        torch.addmm(strip, matrix, of_rows, beta=0, out=strip)
    return out


def entries_at(pre: Tensor, places: Tensor) -> SparseEntries:
    """Entries with the pre-activations as values.

    Args:
        pre: `[batch, width]`.
        places: `[batch, k]`, the latents of each row.
    """
    batch, k = places.shape
    starts = torch.arange(0, batch * k + 1, k, device=pre.device)
    rows = torch.arange(batch, device=pre.device).repeat_interleave(k)
    values = pre.gather(1, places).flatten()
    return SparseEntries(values, values, places.flatten(), rows, starts, pre.shape[1])


def entries_where(pre: Tensor, mask: Tensor) -> SparseEntries:
    """Entries with the pre-activations `[batch, width]` as values, wherever the mask `[batch, width]` is true."""
    flat = flat_places(mask)
    rows = flat // pre.shape[1]
    starts = torch.searchsorted(rows, torch.arange(len(pre) + 1, device=pre.device))
    values = pre.reshape(-1)[flat]
    return SparseEntries(values, values, flat - rows * pre.shape[1], rows, starts, pre.shape[1])


def is_sparse(mask: Tensor) -> bool:
    """Whether entries where a mask `[batch, width]` is true are better handled as a list."""
    return int(mask.count_nonzero()) <= DENSE_SHARE * mask.numel()


def flat_places(mask: Tensor) -> Tensor:
    """Where a mask is true, as places in the flattened mask `[n]`, ascending."""
    if mask.device.type == "cpu":  # numpy finds them three times as fast as torch
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


@torch.no_grad()
def top_k(scores: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores of each row, in no particular order.

    Some rows at a time, so that they stay in the cache: numpy sorts with vector instructions, and without the
    interpreter's lock.

    Args:
        scores: `[rows, width]`.
        k: how many, at most `width`.

    Returns:
        Columns, `[rows, k]`.
    """
    if scores.device.type != "cpu":
        return scores.topk(k, sorted=False).indices
    plain = scores.detach().numpy()
    if plain.size < WORTH_THREADS:
        return torch.from_numpy(_top_k(plain, k))
    threads = torch.get_num_threads()
    pieces = threads * math.ceil(plain.size / CACHED / threads)  # as many for each thread
    rows = math.ceil(len(plain) / pieces)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda start: _top_k(plain[start : start + rows], k), range(0, len(plain), rows))
        return torch.from_numpy(np.concatenate(list(parts)))


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """As `top_k`. One pass finds the maximum of each block of columns: the k-th highest of these is a bound that k
    scores of the row reach and few more, which a second pass finds."""
    rows, width = scores.shape
    if k == 1:
        return scores.argmax(1)[:, None]
    size = round((width / k) ** 0.5)  # columns per block
    blocks = width // size  # block b holds the columns b, b + blocks, b + 2 * blocks, …
    highest = scores[:, : blocks * size].reshape(rows, size, blocks).max(1)
    highest.sort(1)
    flat = np.flatnonzero(scores >= highest[:, blocks - k, None])
    if len(flat) != rows * k:
        flat = _highest(scores, flat, k)
    if len(flat) != rows * k:  # some are equal, or no numbers
        return np.argpartition(scores, width - k, axis=1)[:, width - k :]
    return flat.reshape(rows, k) - np.arange(0, rows * width, width)[:, None]


def _highest(scores: np.ndarray, flat: np.ndarray, k: int) -> np.ndarray:
    """Of places in the flattened scores, ascending, those of each row's k highest, and of all that equal the lowest."""
    rows, width = scores.shape
    values = scores.reshape(-1).take(flat)  # [n]
    counts = np.diff(flat.searchsorted(np.arange(0, rows * width + 1, width)))  # [rows]
    table = np.full((rows, max(k, counts.max())), -np.inf, scores.dtype)
    table[np.arange(table.shape[1]) < counts[:, None]] = values
    table.sort(1)
    return flat.compress(values >= table[:, -k].repeat(counts))
