"""The operations of surgery by name, with their arguments and the function that makes a child.

A new operation is one file in `surgery/operations/` that ends in `register(Operation(...))`. `find_operations` imports
the files of that folder; the page, `wb.surgery.apply_operation` and the tests of all operations read `OPERATIONS`.

    def run(model, *, share, progress=None, cancel=None) -> Child: ...

    register(Operation("prune", "Prune by magnitude", "Sets the smallest weights to zero.",
                       (Argument("share", "Share of weights", 0.5, low=0.0, high=0.99, neutral=0.0),), run))
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.core.arguments import Argument
from workbench.core.checks import checked
from workbench.core.progress import Progress
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model


class Cancelled(SurgeryError):
    """An operation was stopped; it made nothing."""


class Run(Protocol):
    """The function of an operation.

    It leaves the model as it is, reports to `progress`, asks `cancel` now and then, and raises `Cancelled` when that
    returns True.
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
    """The name of its function, in snake_case; scripts and the history of children use it."""
    title: str
    """Its name on the page."""
    about: str
    """One sentence on its effect and its cost."""
    arguments: tuple[Argument, ...]
    run: Run
    neutral: tuple[Mapping[str, Any], ...] | str = ()
    """Arguments at which it changes nothing, or, in words, why there are none; not needed where an argument has a
    neutral value of its own."""

    def settings_that_change_nothing(self) -> list[dict[str, Any]]:
        """Arguments at which it changes nothing, those left out with any value.

        Raises:
            SurgeryError: it does not say; the sentence says what to add.
        """
        if isinstance(self.neutral, str):
            return []
        declared = {one.name: one.neutral for one in self.arguments if one.neutral is not None}
        found = [dict(one) for one in self.neutral] or [declared] * bool(declared)
        if not found:
            raise SurgeryError(
                f"{self.name} does not say where it changes nothing: give the Argument that decides it neutral=VALUE, "
                f'or the Operation neutral=({{"argument": value}},), or neutral="why there is no such setting".'
            )
        return found


OPERATIONS: dict[str, Operation] = {}
"""Every operation by its name."""


def register(operation: Operation) -> None:
    """Add an operation.

    Raises:
        TypeError: another file has registered the name.
    """
    other = OPERATIONS.setdefault(operation.name, operation)
    if other.run.__module__ != operation.run.__module__:  # type: ignore[attr-defined]
        raise TypeError(f"Two operations are called {operation.name!r}.")
    OPERATIONS[operation.name] = operation


def find_operations() -> None:
    """Import every file of `surgery/operations/`, so that its operations register."""
    package = importlib.import_module("workbench.surgery.operations")
    for file in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{file.name}")


@checked(SurgeryError)
def apply_operation(
    model: LanguageModel | Child,
    operation: str,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    **arguments: Any,
) -> Child:
    """The child that an operation makes of a model or of a child.

    Args:
        model: it stays as it is.
        operation: its name in `OPERATIONS`.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: asked now and then; the operation stops when it returns True.
        **arguments: of the operation; those left out have their defaults.

    Raises:
        SurgeryError: an unknown operation, or an argument that is unknown or out of range.
        Cancelled: `cancel` returned True.
    """
    if operation not in OPERATIONS:
        raise SurgeryError(f"There is no operation {operation!r}; there are {', '.join(sorted(OPERATIONS))}.")
    chosen = OPERATIONS[operation]
    known = {one.name: one for one in chosen.arguments}
    for name in arguments:
        if name not in known:
            raise SurgeryError(f"{operation} has no argument {name!r}; it has {', '.join(known) if known else 'none'}.")
    settings = {name: one.check(arguments.get(name, one.default), SurgeryError) for name, one in known.items()}
    return chosen.run(as_model(model), progress=progress, cancel=cancel, **settings)
