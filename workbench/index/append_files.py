"""Files that only grow, together: what a commit counts has reached the disk, and what stands behind it is cut off when
the work is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from workbench.index.layout import FeatureIndexError


class AppendFiles:
    """Raw arrays in one folder that are added to at the end.

    Args:
        folder: where they are.
        sizes: by name, how many bytes of each file count.

    Raises:
        FeatureIndexError: a file is shorter than that.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]):
        self._files: dict[str, IO[bytes]] = {}
        with ExitStack() as stack:
            for name, size in sizes.items():
                file = stack.enter_context(open(folder / name, "ab"))
                if file.tell() < size:
                    raise FeatureIndexError(f"{folder / name} is cut short; delete {folder} and build anew.")
                file.truncate(size)
                self._files[name] = file
            self._stack = stack.pop_all()

    def add(self, name: str, array: np.ndarray) -> None:
        """Add an array's bytes to one of them."""
        self._files[name].write(np.ascontiguousarray(array).data)

    def commit(self) -> None:
        """Wait until all has reached the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close them."""
        self._stack.close()
