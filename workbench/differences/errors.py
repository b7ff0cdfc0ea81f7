"""The error of this room."""

from workbench.core.errors import WorkbenchError


class DifferenceError(WorkbenchError):
    """Two models or a setting that can't be compared."""
