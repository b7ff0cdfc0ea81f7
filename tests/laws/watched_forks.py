"""A forked process in which files are opened while everything that this runs, fetches or reads elsewhere is noted."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from fuzz_values import wrong_sentence

import workbench as wb
from workbench.model.chat_templates import PROCESS

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "builtins.input")
IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000
"""Of Linux's inotify(7): what has no Python behind it, as the readers of safetensors and Parquet, opens files too."""


@dataclass
class Report:
    """What came of opening one thing."""

    what: str
    ending: str
    """`refused` in one sentence of ours, `opened`, or else what was raised."""
    words: str
    events: list[str] = field(default_factory=list)
    """What was run, fetched, or read where nothing is to be read."""

    @property
    def wrong(self) -> str:
        """What a stranger's file must not do; empty where it did nothing of it."""
        if self.events:
            return f"{self.what}: {', '.join(self.events)} ({self.ending}: {self.words})"
        return "" if self.ending in ("refused", "opened") else f"{self.what}: {self.ending}: {self.words}"


def watched(works: Sequence[tuple[str, Callable[[], Any]]], secret: Path, marker: Path) -> list[Report]:
    """Do each work in one fork.

    Args:
        works: what is opened, and how.
        secret: a folder in which nothing is to be read.
        marker: what payloads create.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        _child(works, secret, marker, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(process, 0)
    reports = [Report(**one) for one in json.loads(told or "[]")]
    return reports or [Report("everything", "the process ended", "it told nothing")]


def _child(works: Sequence[tuple[str, Callable[[], Any]]], secret: Path, marker: Path, writing: int) -> None:
    reports: list[Report] = []
    try:
        signal.alarm(300)
        torch.set_num_threads(1)  # a fork has no other threads
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.pop(name, None)
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        _answer_yes()
        events: list[str] = []
        _note(events, str(secret))
        for what, work in works:
            touched = _touched(secret)
            events.clear()
            ending, words = _outcome(work)
            noted = list(dict.fromkeys(events))
            if not any(event.startswith("open") for event in noted) and touched():
                noted.append("something in the secret folder was opened")
            if marker.exists():
                noted.append("code of the file ran")
                marker.unlink()
            reports.append(Report(what, ending, words, noted))
    finally:
        os.write(writing, json.dumps([asdict(one) for one in reports]).encode())
        os._exit(0)


def _outcome(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except wb.WorkbenchError as error:
        return wrong_sentence(error) or "refused", str(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        return type(error).__name__, str(error)[:300]
    return "opened", ""


def _answer_yes() -> None:
    """Let whoever asks on standard input hear yes."""
    reading, writing = os.pipe()
    os.write(writing, b"y\n" * 100)
    os.dup2(reading, 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the fork


def _renders_templates(arguments: tuple[Any, ...]) -> bool:
    """Whether a process that is started is the one of chat templates, whose code is the package's own."""
    return len(arguments) > 1 and isinstance(arguments[1], list) and PROCESS in arguments[1]


def _note(events: list[str], secret: str) -> None:
    """Note from now on what this process runs, fetches and reads in the secret folder; no connection is made."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK:
            events.append(f"{event} {arguments[0] if event != 'socket.connect' else arguments[1]}")
            raise OSError("no network for strangers")
        if event in RUNS and not _renders_templates(arguments):
            events.append(f"{event} {str(arguments)[:80]}")
        elif event in ("open", "sqlite3.connect", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and _is_inside(os.fsdecode(path), secret):
                events.append(f"{event} {os.fsdecode(path)}")

    sys.addaudithook(hook)


def _is_inside(path: str, secret: str) -> bool:
    return path == secret or os.path.realpath(path).startswith(secret + os.sep)


def _touched(secret: Path) -> Callable[[], bool]:
    """Start to watch a folder; the function tells whether a file in it was opened or read since then."""
    system = ctypes.CDLL(None, use_errno=True)
    if not hasattr(system, "inotify_init1"):  # not Linux: the audit hook is all that there is
        return lambda: False
    watch = system.inotify_init1(IN_NONBLOCK)
    for folder in (secret, *(path for path in secret.rglob("*") if path.is_dir())):
        system.inotify_add_watch(watch, os.fsencode(folder), IN_OPEN | IN_ACCESS)
    os.set_blocking(watch, False)
    _drain(watch)  # of the search for folders

    def touched() -> bool:
        seen = _drain(watch)
        os.close(watch)
        return seen

    return touched


def _drain(watch: int) -> bool:
    """Take all events of a watch; whether there was one of a file (bit 30 marks those of folders)."""
    seen = False
    with suppress(BlockingIOError):
        while content := os.read(watch, 1 << 16):
            at = 0
            while at < len(content):
                mask, length = (int.from_bytes(content[at + n : at + n + 4], sys.byteorder) for n in (4, 12))
                seen |= not mask & 0x40000000
                at += 16 + length
    return seen
