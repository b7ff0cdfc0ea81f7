"""The error of the room."""

from __future__ import annotations

from workbench.core.errors import WorkbenchError


class AttributionError(WorkbenchError):
    """A prompt, target, transcoder, model or saved graph that attribution can't use."""
