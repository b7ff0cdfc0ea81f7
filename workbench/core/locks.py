"""One writer of a folder at a time.

`alone` is for long work: a lock in the folder, which names its holder. `in_turn` is for the moment at which something
changes places: a lock on the folder itself, without a file. Both end with their holder's process. Readers need none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.core.errors import WorkbenchError
from workbench.core.failures import explained
from workbench.core.paths import check_home
from workbench.core.provenance import command_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".writing.lock"
"""The file of the lock, in the folder while it is written."""
PATIENCE = 0.5
"""Seconds that `alone` waits: a lock that has just been opened goes within that."""
TURN = 30.0
"""Seconds that `in_turn` waits: whoever is before changes the places of files and no more, unless it was stopped."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""How a file system says that it has no locks, as some mounts of NFS and FUSE do."""

_HELD: set[tuple[int, int, str, str]] = set()
"""Process, thread, path and kind of the locks that are held here: who holds one may ask for it again."""


@contextlib.contextmanager
def alone(folder: Path, error: type[WorkbenchError]) -> Iterator[None]:
    """A block during which no other process or thread that asks for it writes the folder, which is made if need be.

    The lock of a process that was killed is taken over. Where the file system has no locks, nobody is kept out. The
    thread that holds a folder may ask for it again.

    Raises:
        WorkbenchError: of the given kind: another writer holds the folder, who is named; or it can't be written.
    """
    check_home(folder, error)
    with _held(folder, NAME) as again:
        if again:
            yield
            return
        lock, file = _locked(folder, error), folder / NAME
        try:
            with explained(folder, error):
                file.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command_line()})", encoding="utf-8")
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink()  # before the release: whoever waits for the file sees that it is gone, and makes another
            lock.release()


def check_free(folder: Path, error: type[WorkbenchError]) -> None:
    """Raise where another writer is `alone` with a folder, who is named; the file that a killed one left is removed.

    Nobody begins to be during a turn of the folder above.
    """
    if (os.getpid(), threading.get_ident(), os.path.realpath(folder), NAME) not in _HELD and not clear_lock(folder):
        raise error(_busy(folder))


def clear_lock(folder: Path) -> bool:
    """Remove the file of a lock whose holder was killed, where there is one and it can be removed.

    Returns:
        Whether no other writer, and not the caller, is `alone` with the folder.
    """
    file = folder / NAME
    with contextlib.suppress(OSError):
        if file.exists():
            try:
                with FileLock(file).acquire(timeout=0):
                    file.unlink()
            except Timeout:
                return False
    return True


@contextlib.contextmanager
def in_turn(folder: Path, error: type[WorkbenchError]) -> Iterator[None]:
    """A block that no two processes or threads run at once for a folder, which is there.

    It should be short: others wait for it. The thread that is in it may ask for it again. Where the file system has no
    locks, or nobody may read the folder, nobody is kept out.

    Raises:
        WorkbenchError: of the given kind: another process, which is named, does not come to its end.
    """
    with _held(folder) as again:
        lock = None if again else _turn(folder, error)
        try:
            yield
        finally:
            unlock_folder(lock)


@contextlib.contextmanager
def turn_held(folder: Path) -> Iterator[None]:
    """A block in which this thread's turns of a folder, whose lock it holds by `lock_folder`, do not wait for it."""
    with _held(folder):
        yield


def lock_folder(folder: Path) -> int | None:
    """A lock on a folder, which the end of the process opens; None where the system or the file system has none.

    Raises:
        BlockingIOError: another process holds it.
        OSError: there is no such folder, or it may not be read.
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


def unlock_folder(lock: int | None) -> None:
    """End a lock of `lock_folder`."""
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def _held(folder: Path, kind: str = "turn") -> Iterator[bool]:
    """A block with a lock; whether this thread holds it already."""
    key = (os.getpid(), threading.get_ident(), os.path.realpath(folder), kind)
    if key in _HELD:
        yield True
        return
    _HELD.add(key)
    try:
        yield False
    finally:
        _HELD.discard(key)


def _locked(folder: Path, error: type[WorkbenchError]) -> FileLock:
    """The lock of a folder. It is taken in a turn of the folder above, so that no folder changes places meanwhile."""
    lock, until = FileLock(folder / NAME), time.monotonic() + PATIENCE
    while True:
        with explained(folder, error):
            folder.mkdir(parents=True, exist_ok=True)
            with in_turn(Path(os.path.realpath(folder)).parent, error):
                try:
                    lock.acquire(timeout=0)
                    return lock
                except Timeout:
                    pass
                except OSError as wrong:
                    if wrong.errno in NO_LOCKS:
                        return lock
                    raise
        if time.monotonic() >= until:
            raise error(_busy(folder))
        time.sleep(0.02)


def _turn(folder: Path, error: type[WorkbenchError]) -> int | None:
    until = time.monotonic() + TURN
    while True:
        try:
            return lock_folder(folder)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise error(_busy(folder, _flock_holder(folder))) from None
            time.sleep(0.005)
        except OSError:
            return None


def _busy(folder: Path, holder: str = "") -> str:
    who = holder or _holder(folder / NAME)
    return f"{folder} is being written by {who}; wait until that has ended, or choose another folder."


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return " ".join(file.read_text(encoding="utf-8").split())[:300] or "another process"
    return "another process"


def _flock_holder(folder: Path) -> str:
    """The process that has a lock on a folder itself, as Linux lists them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        there = folder.stat()
        wanted = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == wanted:
                return f"process {words[4]}"
    return "another process"
