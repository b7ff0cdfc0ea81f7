"""Declared arguments: what an operation of surgery or an intervention asks for, read by its checks and by the pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from workbench.core.checks import LARGEST_INTEGER, as_integer, as_number
from workbench.core.errors import WorkbenchError
from workbench.core.paths import has_halves
from workbench.core.type_words import described, shown

Kind = Literal["number", "whole", "yes", "choice", "text", "layers", "heads", "edits", "feature", "direction"]
"""A finite number, a whole number, True or False, one of several words, a text, a list of layers or of heads, a list of
interventions, a feature, or the values of a vector."""
LISTS = ("layers", "heads", "edits")
LARGEST = torch.finfo(torch.float32).max
"""The largest number."""
WORDS: dict[str, str] = {
    "whole": "a whole number",
    "yes": "True or False",
    "text": "a text",
    "feature": "a feature, such as neurons.29.post:808",
    "direction": "a tensor or a list of finite numbers",
    **{kind: f"a list of {kind}" for kind in LISTS},
}


@runtime_checkable
class FeatureLike(Protocol):
    """A coordinate of a dictionary."""

    dictionary: str
    index: int


@dataclass(frozen=True)
class Argument:
    """One setting."""

    name: str
    """The keyword."""
    title: str
    """For people."""
    default: Any
    """The first value; None says that the setting may be left out."""
    kind: Kind = "number"
    low: float | None = None
    high: float | None = None
    """Ends of a number's range, both allowed."""
    choices: tuple[str, ...] = ()
    help: str = ""
    neutral: Any = None
    """The value at which it changes nothing; None where there is none."""
    reach: float | None = None
    """How far a slider for a number goes to both sides of 0; None where the page has no slider for it."""
    step: float | None = None
    """Step of that slider."""
    follows_activation: bool = False
    """Whether default, reach and step are those of a feature whose highest activation is `default`, and are scaled to
    that of another one."""

    def check(self, value: Any, error: type[WorkbenchError]) -> Any:
        """The value in the argument's form: a list as `list`, the values of a vector as a tuple of floats.

        Args:
            value: what is to be checked.
            error: raised, with one sentence, for a value that the argument can't have.
        """
        if value is None and self.default is None:
            return None
        if self.kind == "direction":
            return self._vector(value, error)
        if self.kind in ("number", "whole"):
            value = self._number(value, error)
        elif not self._fits(value):
            raise error(f"{self.name} is {self._described()}, not {shown(value)}.")
        return value if self.kind not in LISTS else [_plain(one) for one in value]  # type: ignore[union-attr]

    def _number(self, value: Any, error: type[WorkbenchError]) -> int | float:
        """The number, of whatever library, as Python's."""
        number = as_integer(value) if self.kind == "whole" else as_number(value)
        most = LARGEST_INTEGER if self.kind == "whole" else LARGEST
        low, high = (-most if self.low is None else self.low), (most if self.high is None else self.high)
        if number is None or not low <= number <= high:
            raise error(f"{self.name} is {self._described()}, not {shown(value)}.")
        return number

    def _fits(self, value: Any) -> bool:
        if self.kind == "yes":
            return isinstance(value, bool)
        if self.kind == "choice":
            return isinstance(value, str) and value in self.choices
        if self.kind == "text":
            return isinstance(value, str) and not has_halves(value)
        if self.kind == "feature":
            return (isinstance(value, str) and bool(value)) or isinstance(value, FeatureLike)
        return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)

    def _vector(self, value: Any, error: type[WorkbenchError]) -> tuple[float, ...]:
        """The values, one row after another, rounded to float32."""
        try:
            flat = torch.as_tensor(value)
            if flat.ndim == 0 or flat.dtype == torch.bool or flat.is_complex():
                raise ValueError("no values")
            flat = torch.as_tensor(value, dtype=torch.float32).flatten()
        except (TypeError, ValueError, RuntimeError, OverflowError) as wrong:
            raise error(f"{self.name} is {self._described()}, not {shown(value)}.") from wrong
        if not bool(flat.isfinite().all()):
            raise error(f"{self.name} is {self._described()}, and one of them is not finite.")
        return tuple(flat.tolist())

    def _described(self) -> str:
        if self.kind == "choice":
            return described(Literal[self.choices])
        ends = [f"from {self.low:g}"] if self.low is not None else []
        ends += [f"to {self.high:g}"] if self.high is not None else []
        number = "a number" if ends else "a finite number"
        return " ".join([number if self.kind == "number" else WORDS[self.kind], *ends])


def _plain(value: Any) -> Any:
    """A member of a list with Python's numbers: a layer, a pair of layer and head; others as they are."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    number = as_number(value)
    return value if number is None else number
