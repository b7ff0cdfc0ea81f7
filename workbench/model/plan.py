"""The plan of one run: which changes share an edit, while interventions bind themselves for the run.

A plan is made by `LanguageModel.bind` and given to each intervention's `bind` in turn. It knows nothing of
dictionaries: an owner is whatever the changes belong to.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Open:
    """An edit that is bound already and still takes changes."""

    owner: Hashable
    reads: str
    """Key of the hook point that it reads."""
    changes: list[Any]


class Plan:
    """What the interventions of one run share.

    A later change of the same owner joins the edit of an earlier one, so that it sees what the earlier one left. When
    something else is bound at a hook point that this edit reads or writes, the edit takes no more changes.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}  # by the key of the hook point that the edit writes
        self._spliced: dict[int, list[list[Any]]] = {}  # by the owner's identity

    def splice(self, owner: object, changes: list[Any]) -> None:
        """Declare that the model runs through `owner`, and that the splice's edit carries out `changes`."""
        self._spliced.setdefault(id(owner), []).append(changes)

    def spliced(self, owner: object) -> list[list[Any]]:
        """The lists of changes of each splice of `owner`; empty where the model does not run through it."""
        return self._spliced.get(id(owner), [])

    def join(self, owner: Hashable, writes: str) -> list[Any] | None:
        """The changes of the last edit at the hook point of the key `writes`, if they are of `owner`; else None."""
        last = self._open.get(writes)
        return last.changes if last is not None and last.owner == owner else None

    def open(self, owner: Hashable, reads: str, writes: str, changes: list[Any]) -> None:
        """Declare an edit that reads and writes at hook points of these keys, and that later changes may join."""
        self.close(writes)
        self._open.pop(reads, None)
        self._open[writes] = _Open(owner, reads, changes)

    def close(self, key: str) -> None:
        """Declare another edit at the hook point of this key: edits that read or write there take no more changes."""
        for writes, one in list(self._open.items()):
            if key in (writes, one.reads):
                del self._open[writes]
