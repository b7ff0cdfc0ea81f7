"""Vectors by hook point, as `Steer.along` and `When.along` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.core.arguments import Argument
from workbench.model.edits import EditError

JOIN = " + "
"""Between the names of several hook points; no name has it."""


@runtime_checkable
class Vectors(Protocol):
    """Vectors by hook point: a `directions.Direction`."""

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """By hook point, `[d]`."""
        ...


def vector_values(vector: Any, name: str) -> tuple[float, ...]:
    """The values of a vector; raises `EditError` for anything else than finite numbers.

    Args:
        vector: a tensor or a list.
        name: of the argument, for the error.
    """
    return Argument(name, "", (), "direction").check(vector, EditError)


def joined_vectors(
    hook_point: str | Vectors, vector: Tensor | Sequence[float] | None, who: str
) -> tuple[str, Tensor | Sequence[float]]:
    """The names of hook points, joined, and their vectors, one after another.

    Args:
        hook_point: a name, or an object with vectors by hook point.
        vector: the vector at the named hook point; None beside an object with its own.
        who: the function that takes them, for the errors.

    Raises:
        EditError: anything else.
    """
    if isinstance(hook_point, Vectors) and isinstance(hook_point.vectors, Mapping):
        if vector is not None:
            raise EditError(f"{who} takes no other direction beside one that has vectors of its own.")
        vectors = hook_point.vectors
        return JOIN.join(vectors), torch.cat([one.detach().cpu().flatten() for one in vectors.values()])
    if not isinstance(hook_point, str):
        raise EditError(f"{who} takes a hook point's name, or a direction with vectors by hook point.")
    if vector is None:
        raise EditError(f"{who} takes a direction, a tensor or a list of finite numbers, not None.")
    return hook_point, vector
