"""The error of this room."""

from workbench.core.errors import WorkbenchError


class FindingError(WorkbenchError):
    """A text or a setting that can't be scanned."""
