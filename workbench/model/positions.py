"""Positions: where an edit acts, as a word or a list of absolute positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from workbench.core.checks import LARGEST_INTEGER, as_integer
from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

Positions = Literal["all", "prompt", "generated"] | tuple[int, ...]
"""`all`; `prompt`: before the first generated token; `generated`: from it on; or named absolute positions."""


class EditError(WorkbenchError):
    """A malformed edit, or one that can never act in its run."""


def as_positions(positions: str | int | Sequence[int]) -> Positions:
    """A position rule in its normal form: a word, or sorted positions without duplicates.

    Raises:
        EditError: an unknown word, a negative or fractional position, or an empty list.
    """
    if isinstance(positions, str) and positions in ("all", "prompt", "generated"):
        return positions  # type: ignore[return-value]
    one = as_integer(positions)
    listed = isinstance(positions, Iterable) and not isinstance(positions, str | bytes | Mapping)
    if one is None and (not listed or getattr(positions, "ndim", 1) != 1):
        raise EditError(
            f"positions is 'all', 'prompt', 'generated' or a list of absolute positions, not {shown(positions)}."
        )
    values = [one] if one is not None else list(positions)  # type: ignore[arg-type]
    if not values:
        raise EditError("positions is an empty list, so the edit can never act; name at least one position.")
    numbers: set[int] = set()
    for value in values:
        number = as_integer(value)
        if number is None or not 0 <= number <= LARGEST_INTEGER:
            raise EditError(f"A position is a whole number counted from the first token, from 0, not {shown(value)}.")
        numbers.add(number)
    return tuple(sorted(numbers))
