"""Whatever saves: two processes that save to one place at once, and one that reads all the time.

At the end the old content or one of the new ones is there whole, a reader never sees anything else, and a writer that
gives way names the other one. One race of each fast saver runs with the suite; `make torture` runs 12 of each.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_faults import REFUSED, Ending, Forked, forked, in_fork
from savers import SAVERS, Saver, model, sae
from trials import WHOLE, names

import workbench as wb
from workbench.core.failures import FileError
from workbench.core.locks import alone, in_turn
from workbench.core.patterns import SafePattern

RACES = 12 if WHOLE else 1
LATEST = 0.05
"""Seconds by which a writer begins later than the other one, at most."""
OTHER_WORK = re.compile(r"holds (another (training|harvest|fit)|trials of another search)")
"""How long work is refused that finds the end of another one's."""

pytestmark = pytest.mark.usefixtures("tiny_cache", "one_thread")


class Gate:
    """What several processes wait for, and pass together."""

    def __init__(self) -> None:
        self.below, self.above = os.pipe()

    def wait(self, seconds: float | None = None) -> bool:
        """In a fork: whether it opened within so many seconds."""
        if self.above >= 0:
            os.close(self.above)
            self.above = -1
        return bool(select.select([self.below], [], [], seconds)[0])

    def open(self) -> None:
        os.close(self.above)
        self.above = -1

    def close(self) -> None:
        os.close(self.below)


@dataclasses.dataclass
class Race:
    """A saver, and folders as they are before a race.

    Args:
        saver: the saver.
        folder: where copies are made.
    """

    saver: Saver
    folder: Path
    copies: int = 0

    def __post_init__(self) -> None:
        self.empty = self.folder / "empty" / self.saver.place
        self.empty.parent.mkdir()
        self.saver.prepare(self.empty)
        ends = [self.copy(self.empty), self.copy(self.empty)]
        for number, place in enumerate(ends):
            self.saver.save(place, number)
        self.contents = [self.saver.read(place) for place in ends]
        self.nothing = self.saver.read(self.empty)
        self.names = [names(place.parent) for place in ends]
        assert len({repr(one) for one in (*self.contents, self.nothing)}) == 3
        self.full = ends[0]

    def copy(self, start: Path) -> Path:
        self.copies += 1
        there = self.folder / str(self.copies)
        shutil.copytree(start.parent, there)
        return there / self.saver.place

    def run(self, seed: int) -> list[Ending]:
        """Two writers and a reader; their endings."""
        chance = random.Random(f"{self.saver.name} {seed}")
        old = chance.random() < 0.5
        contents = (0, 1) if old else chance.choice([(0, 1), (1, 1)])
        path = self.copy(self.full if old else self.empty)
        begin, over = Gate(), Gate()
        allowed = [self.contents[0] if old else self.nothing, *(self.contents[number] for number in contents)]

        def write(number: int, delay: float) -> Callable[[], Any]:
            def work() -> None:
                begin.wait()
                time.sleep(delay)
                self.saver.save(path, number)

            return work

        def read() -> None:
            begin.wait()
            ended = False
            while not ended:
                ended = over.wait(0)
                assert self.saver.read(path) in allowed, "what was read is neither the old nor the new"

        writers = [forked(write(number, chance.uniform(0, LATEST)), path.parent) for number in contents]
        reader = forked(read, path.parent)
        begin.open()
        endings = [one.ending() for one in writers]
        over.open()
        endings.append(reader.ending())
        begin.close()
        over.close()
        self._check(path, contents, writers, endings)
        shutil.rmtree(path.parent)
        return endings

    def _check(self, path: Path, contents: tuple[int, int], writers: list[Forked], endings: list[Ending]) -> None:
        *of_writers, of_reader = endings
        assert of_reader.status == 0, of_reader.sentence
        done = [number for number, ending in zip(contents, of_writers, strict=True) if ending.status == 0]
        for ending, other in zip(of_writers, reversed(writers), strict=True):
            if ending.status != 0:
                assert ending.status == REFUSED, ending.sentence
                assert "\n" not in ending.sentence
                named = f"{path} is being written by process {other.process} on " in ending.sentence
                assert named or OTHER_WORK.search(ending.sentence), ending.sentence
        assert done
        assert self.saver.read(path) in [self.contents[number] for number in done]
        winner = self.contents.index(self.saver.read(path))
        assert names(path.parent) == self.names[winner]
        again = in_fork(lambda: self.saver.save(path, winner), path.parent)
        assert again.status == 0, again.sentence
        assert self.saver.read(path) == self.contents[winner]
        assert names(path.parent) == self.names[winner]


@pytest.mark.parametrize("saver", SAVERS, ids=lambda saver: saver.name)
def test_two_that_save_at_once_leave_one_of_both(saver: Saver, tmp_path: Path) -> None:
    if saver.slow and not WHOLE:
        pytest.skip("in the long form")
    race = Race(saver, tmp_path)
    gave_way = sum(ending.status == REFUSED for seed in range(RACES) for ending in race.run(seed))
    print(f"{RACES} races of {saver.name}, {gave_way} gave way")


@pytest.mark.parametrize("name", ["training", "store", "index"])
def test_whoever_waits_finds_what_the_other_one_finished(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.core.locks.PATIENCE", 60.0)
    saver = next(one for one in SAVERS if one.name == name)
    path, (heard, told), pause = tmp_path / saver.place, os.pipe(), time.sleep

    def wait(seconds: float) -> None:
        os.write(told, b".")
        pause(seconds)

    def work() -> None:
        time.sleep = wait  # of this fork: it tells that it waits
        saver.save(path, 1)

    with alone(path, FileError):
        waiting = forked(work, tmp_path)
        assert select.select([heard], [], [], 60.0)[0]
        saver.save(path, 0)
    first, ending = saver.read(path), waiting.ending()
    if ending.status == 0:  # an index replaces another one
        assert name == "index"
        assert saver.read(path) != first
    else:
        assert ending.status == REFUSED
        assert OTHER_WORK.search(ending.sentence), ending.sentence
        assert saver.read(path) == first
    saver.save(path, 0)
    assert saver.read(path) == first


@pytest.mark.parametrize("name", ["dictionary", "corpus.jsonl", "graph"])
def test_a_turn_that_does_not_end_names_its_holder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = next(one for one in SAVERS if one.name == name)
    monkeypatch.setattr("workbench.core.locks.TURN", 0.1)
    with in_turn(tmp_path, FileError):
        ending = in_fork(lambda: saver.save(tmp_path / saver.place, 1), tmp_path)
    assert ending.status == REFUSED
    holder = f"process {os.getpid()}" if Path("/proc/locks").exists() else "another process"
    assert f"{tmp_path} is being written by {holder};" in ending.sentence
    assert names(tmp_path) == []
    saver.save(tmp_path / saver.place, 1)


def test_an_index_that_is_there_leaves_the_build_of_another_one(tmp_path: Path) -> None:
    saver = next(one for one in SAVERS if one.name == "index")
    saver.save(tmp_path, 0)
    unfinished = tmp_path / "building" / "tokens.bin"
    unfinished.parent.mkdir()
    unfinished.touch()
    with alone(tmp_path, FileError):
        assert in_fork(lambda: saver.save(tmp_path, 0), tmp_path).status == 0
        assert unfinished.exists()
    saver.save(tmp_path, 0)
    assert not unfinished.parent.exists()


def test_an_open_index_stays_what_it_is(tmp_path: Path) -> None:
    def build(texts: list[str]) -> wb.index.FeatureIndex:
        return wb.build_index(model(), sae(0), wb.Corpus(texts), tmp_path, context=32)

    opened = build(["The dog ran to the river.", "The cat sat."])
    build(["A boat by the water; the house is by the river."])
    assert "".join(opened.tokens.strings_in_text(np.arange(len(opened.tokens)))).count("dog") == 1
    assert len(opened.tokens.matches(SafePattern("dog|cat", FileError))) == 2
