"""The request for a comparison of two models."""

from __future__ import annotations

from dataclasses import dataclass

CHANGED, FOLDER = "the steps of Surgery", "a folder or a name"


@dataclass(frozen=True)
class ComparisonRequest:
    """Everything that the findings depend on."""

    source: str
    kind: str
    """`CHANGED` or `FOLDER`."""
    other: str
    """The hash of the child, or the folder or name."""
    corpus: str
    tokens: int
    parts: tuple[str, ...]
    prompt: str
    stamp: str

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the work's task."""
        return ("differences", *(str(one) for one in vars(self).values()))
