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
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.failures import FileError, explained
from workbench.core.locks import NAME, check_free, in_turn, lock_folder, turn_held, unlock_folder
from workbench.core.paths import check_home
from workbench.core.replacement import check_place

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
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
"""How a file system says that a folder can't take the place of another one."""


@contextlib.contextmanager
def replacing(
    target: Path,
    error: type[WorkbenchError] = FileError,
    *,
    own: Sequence[str] = (),
    note: str = "",
    owned: bool = False,
    form: Any = None,
    former: Sequence[Collection[str]] = (),
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
        form: of a JSON file, what an older one has to be, and of lines of JSON what each has to be; a type as in
            `forms.py`, beside whose keys there are no others. None compares only the keys of the outermost objects.
        former: of a JSON file, the outermost keys that older versions wrote.

    Raises:
        WorkbenchError: of the given kind: `target` can't be written, or holds something that the caller does not
            write. What is there stays.
    """
    own = (*own, NAME)
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
            with in_turn(real.parent, error):
                if real.is_dir():
                    check_free(real, error)
                check_place(target, temporary, error, own=own, note=note, owned=owned, form=form, former=former)
                _put(temporary, real)


def clear_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote `target` left beside it.

    A folder that was moved aside and not replaced any more goes back to its place.
    """
    for left in target.parent.glob(f"{glob.escape(_prefix(target))}{CHANCE}{SUFFIX}"):
        with contextlib.suppress(OSError):  # of a writer that lives, or of another user
            lock = lock_folder(left)
            try:
                if lock is None and time.time() - left.stat().st_mtime < ABANDONED:
                    continue
                if (left / OLD).is_dir() and not target.exists():
                    os.rename(left / OLD, target)
                shutil.rmtree(left)
            finally:
                unlock_folder(lock)


def _real(target: Path, error: type[WorkbenchError]) -> Path:
    """The absolute path without links."""
    check_home(target, error)
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
            lock = lock_folder(folder)
        except (BlockingIOError, FileNotFoundError):  # another writer clears it away as a leftover
            continue
        try:
            if folder.exists():
                with turn_held(folder):
                    yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            unlock_folder(lock)


def is_empty(folder: Path) -> bool:
    """Whether there is a folder with nothing in it but a lock, which a saver may take as if there were none."""
    return folder.is_dir() and all(file.name == NAME for file in folder.iterdir())


def _share(path: Path, usual: int) -> None:
    """Give files these permissions, where they have fewer."""
    with contextlib.suppress(OSError):  # where the file system has no permissions
        for one in path.rglob("*") if path.is_dir() else (path,):
            if one.is_file() and not one.is_symlink() and (mode := stat.S_IMODE(one.stat().st_mode)) | usual != mode:
                one.chmod(mode | usual)


def _put(temporary: Path, real: Path) -> None:
    """Give what was written its place."""
    if not real.is_dir():
        try:
            os.replace(temporary, real)
            return
        except OSError as wrong:  # a folder came there, where the file system has no locks
            if wrong.errno not in OCCUPIED:
                raise
    if not _exchange(temporary, real):
        _replace_folder(temporary, real)


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
