"""What every dictionary promises: it reads at one hook point, writes at one, and turns activations into sparse codes.

A dictionary is pure tensor maths. It names hook points but knows no model, and opens no file but its own weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.features import Feature, FeatureError

Change = tuple[int, Callable[[Tensor], Tensor]]
"""A feature's index and what its value `[...]` becomes."""


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


class Dictionary(nn.Module):
    """Features at a hook point.

    Kinds differ in `encode` and `decode`; all else follows from these and from the attributes below, which a kind sets
    when it is built.
    """

    name: str
    """What features call it; the part of a feature id before the colon."""
    kind: str
    """The word under which the kind is registered."""
    reads: str
    """Hook point of the activations it encodes."""
    writes: str
    """Hook point of the activations it reconstructs."""
    d_in: int
    d_out: int
    n_features: int

    @abstractmethod
    def encode(self, x: Tensor) -> Codes:
        """Activations at `reads` `[..., d_in]` as codes."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations at `writes` `[..., d_out]`; affine in the values."""

    @abstractmethod
    def direction(self, index: int) -> Tensor:
        """What one unit of the feature adds at `writes`: `[d_out]`."""

    def feature(self, index: int) -> Feature:
        """One coordinate of this dictionary; raises `FeatureError` if it has no such coordinate."""
        self.check(index)
        return Feature(self.name, index, source=self)

    def check(self, index: int) -> None:
        """Raise `FeatureError` unless `index` is a coordinate of this dictionary."""
        if not 0 <= index < self.n_features:
            raise FeatureError(
                f"{self.name} has {self.n_features:,} features, 0 to {self.n_features - 1}; there is no {index}."
            )

    def intervene(self, read: Tensor, written: Tensor, changes: Sequence[Change]) -> Tensor:
        """Add `decode(edited codes) - decode(codes)`, leaving alone what the dictionary does not explain.

        Args:
            read: activations at `reads`, `[..., d_in]`.
            written: activations at `writes`, `[..., d_out]`.
            changes: applied in order; a later change of the same feature sees what an earlier one left.

        Returns:
            The new activations at `writes`, `[..., d_out]`.
        """
        codes = self.encode(read)
        start: dict[int, Tensor] = {}
        now: dict[int, Tensor] = {}
        for index, change in changes:
            if index not in start:
                start[index] = now[index] = codes.value_of(index)
            now[index] = change(now[index])
        for index, value in now.items():
            difference = (value - start[index]).unsqueeze(-1)  # [..., 1]
            # where nothing changed the activation keeps its bits
            written = torch.where(difference == 0, written, written + difference * self.direction(index))
        return written
