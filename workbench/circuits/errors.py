"""The error of the room."""

from __future__ import annotations

from workbench.core.errors import WorkbenchError


class TaskError(WorkbenchError):
    """A task or setting that can't be used, or not with this model."""
