"""The error of this room."""

from workbench.core.errors import WorkbenchError


class LensError(WorkbenchError):
    """A lens that can't be read, fitted or opened as asked."""
