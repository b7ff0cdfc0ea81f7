"""Sparse codes of activations, and the ways in which an edit changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workbench.core.display import Shown
from workbench.dictionaries.folder import DictionaryError
from workbench.model.conditions import Rule
from workbench.model.edits import Masks


@dataclass(frozen=True)
class Codes(Shown):
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


def check_activations(x: Tensor, width: int, name: str, device: torch.device) -> None:
    """Raise `DictionaryError` unless `x` is a tensor of floating-point numbers `[..., width]` on the device."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[-1:] != (width,):
        found = f"a {type(x).__name__}"
        if isinstance(x, Tensor):
            found = f"{x.shape[-1]:,}" if x.is_floating_point() and x.ndim else f"{x.dtype} {list(x.shape)}"
        raise DictionaryError(f"{name} reads activations of width {width:,}, not {found}.")
    if x.device != device:
        raise _elsewhere(name, device, "the activations", x.device)


def check_codes(codes: Codes, n_features: int, name: str, device: torch.device) -> None:
    """Raise `DictionaryError` unless codes belong to a dictionary of this size on this device."""
    if not isinstance(codes, Codes) or codes.n_features != n_features:
        owner = f"codes of one with {codes.n_features:,}" if isinstance(codes, Codes) else f"a {type(codes).__name__}"
        raise DictionaryError(f"{name} has {n_features:,} features and takes its own codes, not {owner}.")
    if codes.values.device != device:
        raise _elsewhere(name, device, "the codes", codes.values.device)


def _elsewhere(name: str, device: torch.device, what: str, other: torch.device) -> DictionaryError:
    return DictionaryError(
        f"{name} is on the device {device} and {what} are on {other}; move the dictionary with .to({str(other)!r})."
    )


def everywhere(rule: Rule) -> None:
    """The masks of changes that act at all positions, whatever their rule."""
    return None


@dataclass(frozen=True)
class Change:
    """A change of one feature's value."""

    index: int
    """The feature."""
    fn: Callable[[Tensor], Tensor]
    """From its value `[...]` to the new one."""
    positions: Rule = "all"
    source: str = ""
    """What it came from, for error messages."""
    adds: float | None = None
    """What `fn` adds to the value, where that is all that it does."""

    def apply(self, old: Tensor, masks: Masks = everywhere) -> Tensor:
        """The new value `[...]`; the old one outside its positions."""
        mask = masks(self.positions)
        return self.fn(old) if mask is None else torch.where(mask, self.fn(old), old)


@dataclass(frozen=True)
class Rewrite:
    """A change of all codes of an activation together."""

    fn: Callable[[Codes], Codes]
    """It may put columns in front of the old ones; the indices of the old columns stay."""
    positions: Rule = "all"
    source: str = ""
    """What it came from, for error messages."""

    def apply(self, codes: Codes, masks: Masks = everywhere) -> Codes:
        """The new codes; outside its positions the values of new columns are 0 and the others are the old ones."""
        new, mask = self.fn(codes), masks(self.positions)
        if mask is None:
            return new
        old = functional.pad(codes.values, (new.values.shape[-1] - codes.values.shape[-1], 0))
        return Codes(torch.where(mask[..., None], new.values, old), new.indices, new.n_features)
