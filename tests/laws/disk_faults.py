"""A forked process that is killed, or meets a failing disk, at its n-th contact with the disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import workbench as wb

ROOT = Path(wb.__file__).parent
CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.chmod", "os.truncate")
MARKS = ("tempfile.mkdtemp", "shutil.rmtree", "sqlite3.connect")
CREATES = ("open", "os.mkdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
REFUSED, FAILED = 3, 4
"""How the process ends: with one sentence of ours; with anything else."""


@dataclass
class Fault:
    """What happens at a contact with the disk."""

    at: int
    """Its number, from 1; 0 for none."""
    code: int = 0
    """The error that the disk reports; 0 kills the process."""

    def strikes(self, number: int, event: str) -> bool:
        """Whether it happens at this contact."""
        if not self.at or number < self.at:
            return False
        if self.code == errno.ENOSPC:
            return event in CREATES
        if self.code == errno.EROFS:
            return event not in MARKS
        return number == self.at and (not self.code or event not in MARKS)


NONE = Fault(0)


@dataclass
class Ending:
    """How the process ended."""

    status: int
    """The exit code; `-SIGKILL` where it was killed."""
    contacts: int = 0
    sentence: str = ""
    places: list[tuple[str, str]] = field(default_factory=list)
    """Functions of Workbench that the contacts came from: file and name."""


@dataclass
class Forked:
    """A process that runs."""

    process: int
    pipe: int

    def ending(self) -> Ending:
        """How it ended, when it has."""
        with os.fdopen(self.pipe) as pipe:
            told = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return Ending(status, **json.loads(told)) if told else Ending(status)


def in_fork(work: Callable[[], Any], root: Path, fault: Fault = NONE) -> Ending:
    """Run `work` in a fork; its contacts with what lies below `root` are counted."""
    return forked(work, root, fault).ending()


def forked(work: Callable[[], Any], root: Path, fault: Fault = NONE) -> Forked:
    """As `in_fork`, which waits for the end."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        _child(work, root, fault, writing)
    os.close(writing)
    return Forked(process, reading)


def _child(work: Callable[[], Any], root: Path, fault: Fault, writing: int) -> None:
    status, told = FAILED, {"contacts": 0, "sentence": "", "places": []}
    places: set[tuple[str, str]] = set()
    try:
        signal.alarm(120)
        torch.set_num_threads(1)  # a fork has no other threads
        counted = _watch(root, fault, places)
        try:
            work()
            status = 0
        except wb.WorkbenchError as error:
            status, told["sentence"] = REFUSED, str(error)
        except BaseException as error:  # noqa: BLE001 - told to the test
            told["sentence"] = f"{type(error).__name__}: {error}"
        told |= {"contacts": counted[0], "places": sorted(places)}
    finally:
        os.write(writing, json.dumps(told).encode())
        os._exit(status)


def _watch(root: Path, fault: Fault, places: set[tuple[str, str]]) -> list[int]:
    """Count the contacts of this process from now on; the number so far is the first item."""
    counted, inside = [0], str(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _touches(event, arguments, inside):
            return
        counted[0] += 1
        _note_places(places)
        if fault.strikes(counted[0], event):
            if not fault.code:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(fault.code, os.strerror(fault.code), str(arguments[0]))

    sys.addaudithook(hook)
    return counted


def _touches(event: str, arguments: tuple[Any, ...], inside: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and path.startswith(inside) and bool((flags or 0) & WRITES)
    if event in CHANGES or event in MARKS:
        paths = [str(one) for one in arguments[:2] if isinstance(one, str | os.PathLike)]
        return any(path.startswith(inside) or not os.path.isabs(path) for path in paths)  # relative to an open folder
    return event == "ctypes.dlopen" and arguments == (None,)  # two folders change places


def _note_places(places: set[tuple[str, str]]) -> None:
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(str(ROOT)):
            places.add((str(Path(code.co_filename).relative_to(ROOT)), code.co_name))
        frame = frame.f_back
