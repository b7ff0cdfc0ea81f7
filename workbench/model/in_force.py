"""Interventions and splices in force: they act on a model's calls in one thread or task, and are no part of the model.

They live in context variables, so that many threads can steer one shared model at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from workbench.model.edits import Intervention

Held = tuple[tuple[Any, Intervention], ...]
"""Each intervention with the model whose calls it acts on."""

interventions_in_force: ContextVar[Held] = ContextVar("workbench_interventions", default=())
splices_in_force: ContextVar[Held] = ContextVar("workbench_splices", default=())


@contextmanager
def holding(variable: ContextVar[Held], model: Any, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Add interventions on a model to those in force, inside the block."""
    token = variable.set((*variable.get(), *((model, one) for one in interventions)))
    try:
        yield
    finally:
        variable.reset(token)


def acting_on(model: Any) -> list[Intervention]:
    """Splices and interventions in force for a model, in the order in which they act."""
    return [one for held, one in (*splices_in_force.get(), *interventions_in_force.get()) if held is model]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Set aside all interventions and splices in force here, to measure the plain model."""
    interventions, splices = interventions_in_force.set(()), splices_in_force.set(())
    try:
        yield
    finally:
        interventions_in_force.reset(interventions)
        splices_in_force.reset(splices)
