"""Writing files and folders whole or not at all: under a temporary name beside their place, then renamed.

What stands in the place is replaced only where the same saver could have written it; `replacement.py` has the rule. A
writer holds a lock on its temporary folder, which ends with its process: what has no holder was left by a killed one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from workbench.core.errors import WorkbenchError
from workbench.core.replacement import check_place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2(2): paths from where the process runs; the two names change places."""
OLD = "old"
"""Name of a replaced folder in the temporary one, where the file system can't exchange two folders at one moment."""
LONGEST = 40
"""Characters of a target's name in the name of its temporary folder."""
CHANCE, SUFFIX = "[a-z0-9_]" * 8, ".part"
"""What `tempfile.mkdtemp` puts after a prefix, as a pattern, and how the name ends."""
ABANDONED = 24 * 3600
"""Seconds after which a temporary folder has no writer any more, where the file system has no locks."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILURES = (OSError, SafetensorError, sqlite3.Error)
"""How libraries say that something can't be written."""


class FileError(WorkbenchError):
    """A file or a folder that can't be written."""


@contextlib.contextmanager
def replacing(
    target: Path,
    error: type[WorkbenchError] = FileError,
    *,
    own: Sequence[str] = (),
    note: str = "",
    owned: bool = False,
) -> Iterator[Path]:
    """A temporary neighbour of `target`, renamed to it when the block ends well and removed when it does not.

    A folder that is there changes places with the new one at one moment, where the file system can do that; elsewhere
    it is moved aside first, and moved back if the new one can't take its place. Whoever may read other new files may
    read these too: safetensors writes files for their owner alone. What killed writers of the target left is removed.

    Args:
        target: the file or folder to write; a link is followed.
        error: the room's own error.
        own: of a folder, patterns of names that such a folder may hold besides those of the new one.
        note: of a folder, the file that every older one of this kind has.
        owned: whether the place belongs to the caller alone, as in a cache, so that any file or folder is replaced.

    Raises:
        WorkbenchError: of the given kind: `target` can't be written, or holds something that the caller does not
            write. What is there stays.
    """
    with explained(target, error):
        real = _real(target, error)
        real.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(real)
        with _scratch(real) as scratch:
            temporary = scratch / real.name
            temporary.touch()
            usual = stat.S_IMODE(temporary.stat().st_mode)
            temporary.unlink()
            yield temporary
            _share(temporary, usual)
            check_place(target, temporary, error, own=own, note=note, owned=owned)
            if not real.is_dir():
                os.replace(temporary, real)
            elif not _exchange(temporary, real):
                _replace_folder(temporary, real)


@contextlib.contextmanager
def explained(target: Path, error: type[WorkbenchError] = FileError) -> Iterator[None]:
    """A block that writes; what keeps it from that is raised as one sentence of the given kind, with the path."""
    try:
        yield
    except FAILURES as wrong:
        raise error(f"{target} can't be written: {_reason(wrong, target)}.") from wrong


def clear_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote `target` left beside it.

    A folder that was moved aside and not replaced any more goes back to its place.
    """
    for left in target.parent.glob(f"{glob.escape(_prefix(target))}{CHANCE}{SUFFIX}"):
        with contextlib.suppress(OSError):  # of a writer that lives, or of another user
            lock = _lock(left)
            try:
                if lock is None and time.time() - left.stat().st_mtime < ABANDONED:
                    continue
                if (left / OLD).is_dir() and not target.exists():
                    os.rename(left / OLD, target)
                shutil.rmtree(left)
            finally:
                _unlock(lock)


def _real(target: Path, error: type[WorkbenchError]) -> Path:
    """The absolute path without links."""
    try:
        real = Path(target).resolve()
    except (ValueError, RuntimeError) as wrong:  # a NUL; links in a circle
        raise error(f"{str(target)!r} is no path that can be written: {wrong}.") from wrong
    if real.is_dir() and Path.cwd().is_relative_to(real):
        raise error(f"{target} is the folder that this process runs in, which can't be replaced; choose another.")
    return real


def _prefix(target: Path) -> str:
    """How the names of a target's temporary folders begin; a long name is cut, and its hash tells it from others."""
    name = target.name
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return f".{name}."


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, locked while the block runs and removed after it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=SUFFIX, dir=target.parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another writer clears it away as a leftover
            continue
        try:
            if folder.exists():
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which the end of the process opens; None where the system or the file system has none.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: there is no such folder.
    """
    if fcntl is None:
        return None
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise
    except OSError:
        os.close(opened)
        return None
    return opened


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def is_empty(folder: Path) -> bool:
    """Whether there is a folder with nothing in it, which a saver may take as if there were none."""
    return folder.is_dir() and not any(folder.iterdir())


def _share(path: Path, usual: int) -> None:
    """Give files these permissions, where they have fewer."""
    with contextlib.suppress(OSError):  # where the file system has no permissions
        for one in path.rglob("*") if path.is_dir() else (path,):
            if one.is_file() and not one.is_symlink() and (mode := stat.S_IMODE(one.stat().st_mode)) | usual != mode:
                one.chmod(mode | usual)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two names have changed places; they have not where the system or the file system can't do it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call is not None and call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _replace_folder(temporary: Path, target: Path) -> None:
    """In two steps, with the old folder kept until the new one is in its place."""
    old = temporary.parent / OLD
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise


def _reason(wrong: BaseException, target: Path) -> str:
    """What kept a library from writing; for a full disk, also how much room it has."""
    words = (getattr(wrong, "strerror", None) or str(wrong) or type(wrong).__name__).strip().splitlines()[0]
    full = getattr(wrong, "errno", None) in FULL or "No space left" in words or "disk is full" in words
    if not full:
        return words.rstrip(". ")
    for place in Path(target).absolute().parents:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(place).free
            return f"the disk is full, {free / 1e6:,.1f} MB are free at {place}"
    return "the disk is full"
