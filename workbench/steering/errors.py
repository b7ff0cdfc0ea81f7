"""The error of this room."""

from __future__ import annotations

from workbench.core.errors import WorkbenchError


class SteeringError(WorkbenchError):
    """A search or a comparison that can't be made."""
