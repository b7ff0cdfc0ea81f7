"""The error of this room."""

from workbench.core.errors import WorkbenchError


class LabelError(WorkbenchError):
    """A label that can't be asked for or scored, or a server that gives no answer."""
