"""Affine changes of an activation, which a matrix in front of it or behind it can take over.

Behind a matrix, `change(W x + b)` is another matrix and bias; in front of it, `W change(x) + b` is too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from workbench.model.edits import EditError


class NotAffineError(EditError):
    """An edit that is no affine change of an activation; the message is the reason."""


@dataclass(frozen=True)
class Affine:
    """An affine map of a feature's value: `factor * old + value`."""

    factor: float
    value: float


class AffineChange(Protocol):
    """An affine change of a vector; both ways of folding write into the matrix `[out, in]` and bias `[out]`."""

    @property
    def shifts(self) -> bool:
        """Whether it moves zero, so that a bias is needed."""
        ...

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """`change(weight x + bias)`."""
        ...

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """`weight change(x) + bias`."""
        ...


@dataclass(frozen=True)
class Coordinate:
    """One coordinate: `x[index] = factor x[index] + value`."""

    index: int
    factor: float
    value: float

    @property
    def shifts(self) -> bool:
        """Whether a value is added."""
        return self.value != 0

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """A row and its bias."""
        weight[self.index] *= self.factor
        bias[self.index] = self.factor * bias[self.index] + self.value

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """A column; the value's share goes into the bias."""
        bias += self.value * weight[:, self.index]
        weight[:, self.index] *= self.factor


@dataclass(frozen=True, eq=False)
class Add:
    """`x + vector`."""

    vector: Tensor = field(repr=False)
    """In float64."""

    @property
    def shifts(self) -> bool:
        """Whether the vector is not zero."""
        return bool(self.vector.any())

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """The bias alone."""
        bias += self.vector

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """The bias alone, by the product of the matrix and the vector."""
        bias += weight @ self.vector


@dataclass(frozen=True)
class Silence:
    """The coordinates from `start` to before `stop` become zero; all to the end where there is no `stop`."""

    start: int = 0
    stop: int | None = None
    shifts: bool = field(default=False, init=False)

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """Rows and their biases."""
        weight[self.start : self.stop] = 0
        bias[self.start : self.stop] = 0

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """Columns."""
        weight[:, self.start : self.stop] = 0


@dataclass(frozen=True, eq=False)
class Project:
    """`x - unit (unit · x)`; `unit` has length 1."""

    unit: Tensor = field(repr=False)
    """In float64."""
    shifts: bool = field(default=False, init=False)

    def behind(self, weight: Tensor, bias: Tensor) -> None:
        """Every column, and the bias."""
        weight.addr_(self.unit, self.unit @ weight, alpha=-1)
        bias -= self.unit * (self.unit @ bias)

    def before(self, weight: Tensor, bias: Tensor) -> None:
        """Every row."""
        weight.addr_(weight @ self.unit, self.unit, alpha=-1)
