"""The error of evaluation."""

from __future__ import annotations

from workbench.core.errors import WorkbenchError


class EvaluationError(WorkbenchError):
    """Logits, tokens or texts that do not fit each other."""
