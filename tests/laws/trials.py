"""Savers under trial: what is there before, and what an undisturbed process leaves."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from disk_faults import Ending, Fault, in_fork
from savers import Saver

WHOLE = bool(os.environ.get("WORKBENCH_TORTURE"))
"""Whether the long form runs."""
REACHED: set[tuple[str, str]] = set()
"""Functions that the savers went through."""


def names(folder: Path) -> list[str]:
    """The paths of all that is in a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


class Trial:
    """A saver with what it leaves where nothing disturbs it.

    Args:
        saver: the saver.
        folder: where copies are made.
        old: whether content 0 is there when content 1 is saved.
    """

    def __init__(self, saver: Saver, folder: Path, old: bool):
        self.saver, self.folder, self.copies = saver, folder, 0
        self.start = folder / "start" / saver.place
        self.start.parent.mkdir(parents=True)
        saver.prepare(self.start)
        if old:
            saver.save(self.start, 0)
        self.before = saver.read(self.start)
        undisturbed = self.copy()
        self.ending = in_fork(lambda: saver.save(undisturbed, 1), undisturbed.parent)
        assert self.ending.status == 0, self.ending.sentence
        REACHED.update(map(tuple, self.ending.places))
        self.after = saver.read(undisturbed)
        self.names = names(undisturbed.parent)
        assert self.after is not None
        assert self.after != self.before

    def copy(self) -> Path:
        """A folder as it is at the start."""
        self.copies += 1
        there = self.folder / str(self.copies)
        shutil.copytree(self.start.parent, there)
        return there / self.saver.place

    def contacts(self, count: int, most: int = 1000) -> list[int]:
        """Numbers of contacts, some by chance; in the long form all of them, or so many at most."""
        everything = range(1, self.ending.contacts + 1)
        count = min(most if WHOLE else count, len(everything))
        return sorted(random.Random(self.saver.name).sample(everything, k=count))

    def disturbed(self, fault: Fault) -> tuple[Path, Ending]:
        """A copy on which content 1 was saved under a fault."""
        path = self.copy()
        ending = in_fork(lambda: self.saver.save(path, 1), path.parent, fault)
        seen = self.saver.read(path)
        assert seen in (self.before, self.after), f"at contact {fault.at} of {self.ending.contacts}"
        return path, ending

    def finishes(self, path: Path) -> None:
        """The same call again ends as an undisturbed one, and leaves nothing else behind."""
        again = in_fork(lambda: self.saver.save(path, 1), path.parent)
        assert again.status == 0, again.sentence
        assert self.saver.read(path) == self.after
        assert names(path.parent) == self.names, (names(path.parent), self.names)
        shutil.rmtree(path.parent)
