"""The operations of surgery by name: what each asks for, and how it makes a child.

A new operation is one file that ends in `register(Operation(...))` and is imported by `workbench/__init__.py`; the
app's page and `wb.surgery.apply_operation` find it here.

    def run(model, *, share, progress=None, cancel=None) -> Child: ...

    register(Operation("prune", "Prune by magnitude", "Sets the smallest weights to zero.",
                       (Argument("share", "Share of weights", 0.5, low=0.0, high=0.99),), run))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.core.arguments import Argument
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child, SurgeryError
from workbench.surgery.inputs import as_model


class Cancelled(SurgeryError):
    """The operation was stopped before it had made anything."""


class Run(Protocol):
    """What an operation does.

    It leaves the model as it is. It tells `progress` how far it is, asks `cancel` now and then, and raises `Cancelled`
    when that says True.
    """

    def __call__(
        self,
        model: LanguageModel,
        *,
        progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
        **arguments: Any,
    ) -> Child:
        """The changed model."""
        ...


@dataclass(frozen=True)
class Operation:
    """One way to change a model."""

    name: str
    """What scripts call it."""
    title: str
    """What the page calls it."""
    about: str
    """One sentence on what it does and what it costs."""
    arguments: tuple[Argument, ...]
    run: Run


OPERATIONS: dict[str, Operation] = {}
"""Every operation by its name."""


def register(operation: Operation) -> None:
    """Make an operation known."""
    other = OPERATIONS.setdefault(operation.name, operation)
    if other.run.__module__ != operation.run.__module__:  # type: ignore[attr-defined]
        raise TypeError(f"Two operations are called {operation.name!r}.")
    OPERATIONS[operation.name] = operation


def apply_operation(
    model: LanguageModel | Child,
    operation: str,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    **arguments: Any,
) -> Child:
    """Change a model, or a child further, by an operation of this name; what is not given has its first value.

    Raises:
        SurgeryError: there is no such operation, or an argument can't be used.
    """
    if operation not in OPERATIONS:
        raise SurgeryError(f"There is no operation {operation!r}; there are {', '.join(sorted(OPERATIONS))}.")
    chosen = OPERATIONS[operation]
    known = {one.name: one for one in chosen.arguments}
    for name in arguments:
        if name not in known:
            raise SurgeryError(f"{operation} has no argument {name!r}; it has {', '.join(known) if known else 'none'}.")
    given = {name: one.check(arguments.get(name, one.default), SurgeryError) for name, one in known.items()}
    return chosen.run(as_model(model), progress=progress, cancel=cancel, **given)
