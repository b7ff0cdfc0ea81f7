"""Whatever saves, on real disks: full, read-only, or another user's. It says so, and what was there is there still.

Where file systems can't be mounted, files that may not grow beyond a size stand for full disks. Savers whose files no
Python function writes run with the suite, and all of them with `make torture`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_faults import REFUSED, Ending, in_fork
from savers import SAVERS, Saver, fill_cache
from trials import WHOLE, Trial

NATIVE = ("dictionary", "corpus.parquet", "label", "index")
"""Savers that write by safetensors, Arrow, SQLite, and all of them and NumPy."""
SIZE, PAGE = 64 * 2**20, 4096
"""Bytes of the file system of a test, and of the pieces in which it gives space."""
NOBODY = 65534
"""The user and the group that own nothing."""

some = pytest.mark.parametrize(
    "saver", [one for one in SAVERS if WHOLE or one.name in NATIVE], ids=lambda one: one.name
)
pytestmark = pytest.mark.usefixtures("tiny_cache", "one_thread")


@functools.cache
def unmountable() -> str:
    """Why no file system can be mounted here; empty where one can."""
    with tempfile.TemporaryDirectory() as place:
        try:
            _mount(Path(place))
        except (OSError, subprocess.CalledProcessError) as error:
            return str(error)
        subprocess.run(["umount", place], check=True)
    return ""


def _mount(place: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={SIZE}", *options]), "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of its own, which anybody may look at."""
    if unmountable():
        pytest.skip(f"no file system can be mounted: {unmountable()}")
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    _mount(place, "mode=755")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()


@contextlib.contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """A block in which so many bytes are free on a file system."""
    filler = disk / "filler"
    with open(filler, "wb") as opened:
        there = os.statvfs(disk)
        size = max(there.f_bavail * there.f_frsize - free, 0)
        if size:
            os.posix_fallocate(opened.fileno(), 0, size)
    try:
        yield
    finally:
        filler.unlink()


def in_one_sentence(ending: Ending, path: Path) -> str:
    assert ending.status == REFUSED, ending.sentence
    assert str(path.parent) in ending.sentence
    assert "\n" not in ending.sentence
    assert ending.sentence.count("written") == 1, ending.sentence
    return ending.sentence


def pages(folder: Path) -> int:
    """Pieces of a file system that the files of a folder take."""
    return sum(-(-file.stat().st_size // PAGE) for file in folder.rglob("*") if file.is_file())


@some
def test_a_full_disk_is_one_sentence(saver: Saver, disk: Path) -> None:
    trial = Trial(saver, disk, not saver.resumes)
    needed, chance = pages(disk / "1"), random.Random(saver.name)  # the folder of the undisturbed process
    for free in [0, *(chance.randrange(2 * needed) for _ in range(6 if WHOLE else 1))]:
        path = trial.copy()
        with filled(disk, free * PAGE):
            ending = in_fork(lambda path=path: saver.save(path, 1), path.parent)
            if ending.status != 0 or not free:
                told = in_one_sentence(ending, path)
                assert "the disk is full, " in told, f"{free} of {needed}: {told}"
                assert " MB are free at " in told
            assert saver.read(path) in (trial.before, trial.after), f"{free} of {needed}"
        trial.finishes(path)


@some
def test_a_file_that_may_not_grow_is_one_sentence(saver: Saver, tmp_path: Path) -> None:
    if not WHOLE and not unmountable():
        pytest.skip("in the long form, or where no file system can be mounted")
    trial = Trial(saver, tmp_path, not saver.resumes)
    largest = max(file.stat().st_size for file in (tmp_path / "1").rglob("*") if file.is_file())
    chance = random.Random(saver.name)
    for size in [0, *(chance.randrange(largest) for _ in range(3))]:
        path = trial.copy()

        def work(path: Path = path, size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            saver.save(path, 1)

        ending = in_fork(work, path.parent)
        if ending.status != 0 or not size:
            in_one_sentence(ending, path)
        assert saver.read(path) in (trial.before, trial.after)
        trial.finishes(path)


@some
def test_a_read_only_disk_is_one_sentence(saver: Saver, disk: Path) -> None:
    trial = Trial(saver, disk, not saver.resumes)
    path = trial.copy()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ending = in_fork(lambda: saver.save(path, 1), path.parent)
    in_one_sentence(ending, path)
    assert saver.read(path) == trial.before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    trial.finishes(path)


@some
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["may look", "may not look"])
def test_without_a_permission_is_one_sentence(saver: Saver, mode: int, disk: Path) -> None:
    trial = Trial(saver, disk, not saver.resumes)
    path = trial.copy()
    path.parent.chmod(mode)
    ending = in_fork(as_nobody(lambda: saver.save(path, 1)), path.parent)
    if mode == 0o755:
        in_one_sentence(ending, path)
    else:  # some savers look first
        assert ending.status == REFUSED, ending.sentence
        assert str(path.parent) in ending.sentence
        assert "\n" not in ending.sentence
    assert saver.read(path) == trial.before
    trial.finishes(path)


def as_nobody(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same by a user who may write nothing, in a fork."""

    def run() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    return run


@pytest.mark.parametrize("fault", ["full", "read-only", "closed"])
def test_a_cache_on_such_a_disk_stops_nothing(fault: str, disk: Path, tmp_path: Path) -> None:
    whole = fill_cache(tmp_path / "whole", 5)

    def check() -> None:
        assert np.array_equal(fill_cache(disk / "cache", 5).tokens, whole.tokens)

    work = check
    with contextlib.ExitStack() as stack:
        if fault == "full":
            stack.enter_context(filled(disk, 0))
        elif fault == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:
            shutil.copytree(tmp_path / "whole", disk / "cache")
            (disk / "cache").chmod(0o700)
            work = as_nobody(check)
        ending = in_fork(work, disk)
    assert ending.status == 0, ending.sentence
