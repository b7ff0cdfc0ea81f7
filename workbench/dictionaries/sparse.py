"""Sparse linear algebra for dictionaries: finding active latents, decoding them, and their weights' gradients.

With k of `width` latents active per row, only the encoder's product is dense. Decoding is an embedding bag: a weighted
sum of decoder rows for each row of the batch. Both weight gradients are the same sum with the roles turned round, a
weighted sum of batch rows for each latent, once the entries are sorted by latent. The values' gradient is a sampled
dense-dense product: only the entries that exist are computed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

_sampled_products = torch.ops.aten._embedding_bag_per_sample_weights_backward
"""The gradient of an embedding bag by its weights is the sampled dense-dense product; the last argument says "sum"."""

_threshold_backward = torch.ops.aten.threshold_backward.grad_input
"""The gradient of a ReLU, in one pass and in place."""

PIECE = 256
"""Rows of a dense matrix that are summed at a time, so that what is made of them stays in the cache."""

WORTH_THREADS = 1 << 18
"""Searches among fewer numbers than this are not worth a second thread."""

SORTED = 1024
"""Rows up to this width are sorted whole."""
CACHED = 1 << 21
"""Numbers that a thread searches at a time."""

DENSE_SHARE = 1 / 16
"""With more than this share of the latents active, dense products are faster than sparse ones."""


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

    def outer(self, weights: Tensor, rows: Tensor) -> Tensor:
        """For each latent the sum over the batch of weight `[entries]` times row `[batch, d]`: `[width, d]`."""
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
        return torch.bincount(self.latents[self.values > 0], minlength=self.width)

    def decode(self, directions: Tensor) -> Tensor:
        """See `Entries`."""
        return embedding_bag(
            self.latents,
            directions,
            self.starts,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """See `Entries`."""
        return _sampled_products(rows, directions, self.latents, self.starts[:-1], self.rows, 0)

    def outer(self, weights: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        order, sorted_rows, starts = self._by_latent
        return embedding_bag(
            sorted_rows, rows, starts, mode="sum", per_sample_weights=weights[order], include_last_offset=True
        )

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order that sorts entries by latent, their rows in that order, and where each latent's begin."""
        order = self.latents.int().sort(stable=True).indices  # 32-bit numbers sort twice as fast
        counts = torch.bincount(self.latents, minlength=self.width)
        return order, self.rows[order], pad(counts.cumsum(0), (1, 0))


@dataclass
class DenseEntries:
    """Entries as a full `[batch, width]` matrix, 0 where a latent is absent.

    Such a matrix is larger than any cache, and fresh memory for one costs as much as several passes over it. So values
    are made in the place of the pre-activations, slopes are changed in place, and sums are taken some rows at a time.
    """

    pre: Tensor
    """The values, once they are made."""
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

    def outer(self, weights: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        return weights.T @ rows


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
    rows = max(1, CACHED // plain.shape[1])
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda start: _top_k(plain[start : start + rows], k), range(0, len(plain), rows))
        return torch.from_numpy(np.concatenate(list(found)))


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """As `top_k`. One pass finds the maximum of each block of columns: the k highest entries can only lie in the k
    blocks with the highest maxima, so that a search among √(width·k) blocks and then as many columns replaces one over
    all columns."""
    rows, width = scores.shape
    size = round((width / k) ** 0.5)  # columns per block
    if size < 4:
        return _highest(scores, k)
    blocks = width // size  # block b holds the columns b, b + blocks, b + 2 * blocks, …
    chosen = _highest(scores[:, : blocks * size].reshape(rows, size, blocks).max(1), k)  # [rows, k]
    places = (chosen[:, None, :] + np.arange(0, blocks * size, blocks)[:, None]).reshape(rows, -1)  # [rows, size * k]
    if blocks * size < width:
        rest = np.broadcast_to(np.arange(blocks * size, width), (rows, width - blocks * size))
        places = np.concatenate([places, rest], axis=1)
    best = _highest(np.take_along_axis(scores, places, 1), k)
    return np.take_along_axis(places, best, 1)


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """As `top_k`, by a search over all columns.

    A row's k-th highest number is found by sorting the row, and then everything from it on; where equal numbers make
    that more than k, by a partition of the columns themselves.
    """
    rows, width = scores.shape
    if width <= SORTED:
        lowest = np.sort(scores, axis=1)[:, width - k, None]
        flat = np.flatnonzero(scores >= lowest)
        if len(flat) == rows * k:
            return flat.reshape(rows, k) - np.arange(0, rows * width, width)[:, None]
    return np.argpartition(scores, width - k, axis=1)[:, width - k :]
