"""Writing files and folders whole or not at all: under a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2(2): paths from where the process runs; the two names change places."""


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary neighbour of `target`, renamed to it when the block ends well and removed when it does not.

    A folder that is there changes places with the new one at one moment, where the file system can do that; elsewhere
    it is moved aside first, and moved back if the new one can't take its place. Whoever may read other new files may
    read these too: safetensors writes files for their owner alone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)) / target.name
    try:
        probe = temporary.with_name(f"{target.name}.probe")
        probe.touch()
        usual = stat.S_IMODE(probe.stat().st_mode)
        yield temporary
        _share(temporary, usual)
        if not target.is_dir() or target.is_symlink():
            os.replace(temporary, target)
        elif not _exchange(temporary, target):
            _replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


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
    old = temporary.parent / "old"
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise


def _sweep(target: Path) -> None:
    """Remove what a process that was killed while it wrote `target` left beside it more than a day ago."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left)
