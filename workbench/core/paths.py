"""Paths of files and folders, checked before the file system sees them."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

LONGEST_NAME = 255
"""Bytes of one name in a path; file systems allow no more."""
LONGEST_PATH = 4095
"""Bytes of a path; Linux allows no more."""

SHARED, SHARED_MARK = "blobs", ".huggingface-shared-blobs"
"""The folder of the hub's cache with files of all repositories, and the file in it by which it is known."""


def path_fault(path: str | Path) -> str:
    """Why a path can't be one, as "a path … not '…'" goes on; empty where it can."""
    text = os.fspath(path)
    if not text:
        return "that is not empty"
    if "\0" in text:
        return "without a NUL character"
    if has_halves(text):
        return "without halves of characters (lone surrogates)"
    if len(text.encode()) > LONGEST_PATH or any(len(name.encode()) > LONGEST_NAME for name in text.split(os.sep)):
        return f"with names of at most {LONGEST_NAME} bytes"
    return ""


def has_halves(text: str) -> bool:
    """Whether a text holds halves of characters (lone surrogates), which UTF-8 can't hold."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def as_path(path: str | Path, error: type[WorkbenchError]) -> Path:
    """A path that a file system can hold; raises the room's own error for another."""
    fault = path_fault(path) if isinstance(path, str | Path) else "as a text or a Path"
    if fault:
        raise error(f"Give a path {fault}, not {shown(path)}.")
    return Path(path)


def check_home(path: str | Path, error: type[WorkbenchError]) -> None:
    """Refuse to write where a path begins with "~", which only a shell replaces by the home folder."""
    if str(path).startswith("~"):
        raise error(
            f"{shown(str(path))} begins with '~', which stands for no folder here; write the whole path or Path.home()."
        )


def check_ordinary(file: Path, error: type[WorkbenchError]) -> None:
    """Refuse to read what is no ordinary file: a device or pipe may have no end. What is not there passes.

    Raises:
        WorkbenchError: of the given kind.
    """
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):  # whoever opens it says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails
        raise error(f"{file} is no ordinary file (but a device, pipe or socket) and is not read; copy it into a file.")


def is_plain_name(name: str) -> bool:
    """Whether a text names a file in a folder itself, no hidden one, and leads neither out of it nor into another."""
    return Path(name).parts == (name,) and not name.startswith((".", os.sep)) and not {"\\", "\0"} & {*name}


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path inside a folder stands for something outside of it, by a link.

    The cache of huggingface_hub keeps the files of a snapshot in `blobs` beside `snapshots`, or for all repositories in
    `blobs` of the cache; these count as inside.
    """
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return True
    if real.is_relative_to(home):
        return False
    snapshots = next((one for one in (home, *home.parents) if one.name == "snapshots"), None)
    if snapshots is None:
        return True
    stores = [snapshots.parent / "blobs"]
    if snapshots.parent.name.startswith("models--") and (snapshots.parents[1] / SHARED / SHARED_MARK).is_file():
        stores.append(snapshots.parents[1] / SHARED)
    return not any(real.is_relative_to(one) for one in stores)


def check_stays(path: Path, folder: Path, error: type[WorkbenchError]) -> None:
    """Refuse a path inside a folder that `leads_out` of it.

    Raises:
        WorkbenchError: of the given kind.
    """
    if leads_out(path, folder):
        raise error(f"{path} is a link that leads out of its folder; put the file itself there.")


def check_links(folder: Path, error: type[WorkbenchError]) -> None:
    """Refuse a folder in which a file or folder, hidden or not, at any depth, is a link that leads out of it.

    Raises:
        WorkbenchError: of the given kind, with the first such link.
    """
    inner = [folder]
    while inner:
        with contextlib.suppress(OSError):  # a folder that can't be read is refused by whoever reads it
            for entry in sorted(os.scandir(inner.pop()), key=lambda one: one.name):
                if entry.is_symlink() and leads_out(Path(entry.path), folder):
                    raise error(
                        f"{entry.path} is a link out of its folder, and is not followed; put a copy in its place."
                    )
                if entry.is_dir(follow_symlinks=False):
                    inner.append(Path(entry.path))
