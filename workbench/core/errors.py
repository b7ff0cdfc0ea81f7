"""The one error that all of the package's errors are."""

from __future__ import annotations


class WorkbenchError(ValueError):
    """A request that can't be carried out; the message is one sentence: what is wrong, and what to do.

    Each room raises its own kind of it.
    """
