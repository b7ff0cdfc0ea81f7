"""The error of this room."""

from __future__ import annotations

from workbench.core.errors import WorkbenchError


class DirectionError(WorkbenchError):
    """A direction that can't be made, read or written."""
