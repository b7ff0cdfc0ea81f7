"""The plan of one run: which changes share an edit, while interventions bind themselves for the run.

A plan is made by `LanguageModel.bind` and given to each intervention's `bind` in turn. It knows nothing of
dictionaries: an owner is whatever the changes belong to.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from workbench.model.conditions import Condition


@dataclass
class _Open:
    """An edit that is bound already and still takes changes."""

    owner: Hashable
    reads: frozenset[str]
    """Keys of the hook points that it reads."""
    writes: frozenset[str]
    """Keys of the hook points that it writes."""
    changes: list[Any]


class Plan:
    """What the interventions of one run share.

    A later change of the same owner joins the edit of an earlier one, so that it sees what the earlier one left. When
    something else is bound at a hook point that this edit reads or writes, the edit takes no more changes.
    """

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._spliced: dict[int, list[list[Any]]] = {}  # by the owner's identity
        self._numbers = itertools.count()
        self.condition: Condition | None = None
        """That of the intervention which binds itself now; None where it acts whatever the activations are."""

    def number(self) -> int:
        """The next number of what is counted in this run, from 0."""
        return next(self._numbers)

    def splice(self, owner: object, changes: list[Any]) -> None:
        """Declare that the model runs through `owner`, and that the splice's edit carries out `changes`."""
        self._spliced.setdefault(id(owner), []).append(changes)

    def spliced(self, owner: object) -> list[list[Any]]:
        """The lists of changes of each splice of `owner`; empty where the model does not run through it."""
        return self._spliced.get(id(owner), [])

    def join(self, owner: Hashable, writes: Iterable[str]) -> list[Any] | None:
        """The changes of the last edit at the hook points of the keys `writes`, if they are of `owner`; else None."""
        keys = frozenset(writes)
        return next((one.changes for one in self._open if one.writes == keys and one.owner == owner), None)

    def open(self, owner: Hashable, reads: Iterable[str], writes: Iterable[str], changes: list[Any]) -> None:
        """Declare an edit that reads and writes at hook points of these keys, and that later changes may join."""
        new = _Open(owner, frozenset(reads), frozenset(writes), changes)
        for key in new.writes:
            self.close(key)
        self._open = [one for one in self._open if not one.writes & new.reads]
        self._open.append(new)

    def close(self, key: str) -> None:
        """Declare another edit at the hook point of this key: edits that read or write there take no more changes."""
        self._open = [one for one in self._open if key not in one.reads | one.writes]
