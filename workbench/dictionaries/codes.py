"""Sparse codes of activations, and the ways in which an edit changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Change = tuple[int, Callable[[Tensor], Tensor]]
"""A feature's index, and the function from its value `[...]` to its new value `[...]`."""
Rewrite = Callable[["Codes"], "Codes"]
"""A function of all codes of an activation together; it may add columns."""


@dataclass(frozen=True)
class Codes:
    """Sparse features: for each activation the features that are present, and how strongly."""

    values: Tensor
    """`[..., k]`; 0 means absent."""
    indices: Tensor
    """`[..., k]`, whole numbers in 0 … n_features - 1."""
    n_features: int
    """Size of the dictionary they belong to."""

    def dense(self) -> Tensor:
        """The same codes with a column for every feature: `[..., n_features]`."""
        full = self.values.new_zeros(*self.values.shape[:-1], self.n_features)
        return full.scatter_add(-1, self.indices, self.values)

    def value_of(self, index: int) -> Tensor:
        """The value of one feature: `[...]`, 0 where it is absent."""
        return torch.where(self.indices == index, self.values, 0).sum(-1)

    def with_value(self, index: int, value: Tensor) -> Codes:
        """The same codes, but with this value `[...]` of one feature."""
        others = self.values.masked_fill(self.indices == index, 0)
        column = self.indices.new_full((*self.indices.shape[:-1], 1), index)
        return Codes(
            torch.cat([others, value.unsqueeze(-1)], -1), torch.cat([self.indices, column], -1), self.n_features
        )
