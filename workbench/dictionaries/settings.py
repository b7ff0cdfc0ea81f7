"""Settings of a kind: the arguments of its constructor that a person chooses for a new training.

    def __init__(self, d_in: Positive, width: Width, k: Annotated[Positive, Setting("Active", "How many …")] = 32)

The constructor's signature says name, type, range and default; `Setting` adds what a form shows.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le

from workbench.core.checks import Number, Positive

SMALLEST = 1e-6
"""Distance from a bound that is not allowed itself."""


@dataclass(frozen=True)
class Setting:
    """How a form asks for an argument."""

    title: str
    """Name of the field."""
    help: str = ""
    """A sentence or two."""
    usual: float = 1024
    """Value that is offered where the signature has no default."""


@dataclass(frozen=True)
class Field:
    """An argument of a constructor, as a form asks for it."""

    name: str
    title: str
    help: str
    default: float
    whole: bool
    """Whether it is a whole number."""
    least: float | None
    """Smallest value that is allowed."""
    most: float | None
    """Largest value that is allowed."""


Width = Annotated[
    Positive, Setting("Latents", "How many features to learn. More are finer, and slower to train.", usual=4608)
]
"""Number of latents."""
Active = Annotated[Positive, Setting("Active per token", "How many latents may be active at once.")]
"""Number of latents that may be active at once."""
Coefficient = Annotated[Number, Ge(0), Le(1e9)]
"""A number from 0; a larger one leaves no loss finite."""
L1 = Annotated[Coefficient, Setting("L1 penalty", "Higher makes fewer latents active.")]
"""Coefficient of the sum of values."""
Band = Annotated[Number, Ge(1e-9), Le(1e9)]
"""Width of a band in units of the activations' size."""


def fields_of(constructor: Callable[..., Any]) -> list[Field]:
    """The fields of a form for a constructor: arguments with a `Setting`, and those without a default but `d_in`."""
    hints = typing.get_type_hints(constructor, include_extras=True)
    fields = []
    for one in inspect.signature(constructor).parameters.values():
        kind, *notes = get_args(hints.get(one.name)) or (hints.get(one.name),)
        setting = next((note for note in notes if isinstance(note, Setting)), None)
        required = one.default is inspect.Parameter.empty
        if setting is None and (not required or one.name in ("self", "d_in")):
            continue
        setting = setting or Setting(one.name.replace("_", " ").capitalize())
        least = next((note.ge for note in notes if isinstance(note, Ge)), None)
        above = next((note.gt for note in notes if isinstance(note, Gt)), None)
        fields.append(
            Field(
                one.name,
                setting.title,
                setting.help,
                setting.usual if required else one.default,
                whole=kind is int,
                least=above + SMALLEST if above is not None else least,  # type: ignore[operator]
                most=next((note.le for note in notes if isinstance(note, Le)), None),  # type: ignore[arg-type]
            )
        )
    return fields
