"""One writer of a folder at a time: a lock that names its holder and ends with its holder's process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.core.errors import WorkbenchError
from workbench.core.files import explained
from workbench.core.provenance import command_line

NAME = ".writing.lock"
"""The file of the lock, in the folder while it is written."""
PATIENCE = 0.5
"""Seconds that a lock is waited for: one that has just been opened goes within that."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""How a file system says that it has no locks, as some mounts of NFS and FUSE do."""


@contextlib.contextmanager
def alone(folder: Path, error: type[WorkbenchError]) -> Iterator[None]:
    """A block during which no other process or thread that asks for it writes the folder, which is made if need be.

    The lock of a process that was killed is taken over. Where the file system has no locks, nobody is kept out.

    Raises:
        WorkbenchError: of the given kind: another writer holds the folder, who is named; or it can't be written.
    """
    file = folder / NAME
    with explained(folder, error):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.02)
        except Timeout as wrong:
            raise error(
                f"{folder} is being written by {_holder(file)}; wait until that has ended, or choose another folder."
            ) from wrong
        except OSError as wrong:
            if wrong.errno not in NO_LOCKS:
                raise
    try:
        with explained(folder, error):
            file.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command_line()})", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # before the release: whoever waits for the file sees that it is gone, and makes another
        lock.release()


def clear_lock(folder: Path) -> None:
    """Remove the file of a lock whose holder was killed, where there is one and it can be removed."""
    file = folder / NAME
    with contextlib.suppress(OSError, Timeout):
        if file.exists():
            with FileLock(file).acquire(timeout=0):
                file.unlink()


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return file.read_text(encoding="utf-8").strip() or "another process"
    return "another process"
