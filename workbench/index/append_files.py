"""Files that grow together: committed bytes have reached the disk, and bytes behind them are cut off on resuming."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from workbench.index.layout import FeatureIndexError


class AppendFiles:
    """Raw arrays in one folder, open for appending.

    Args:
        folder: their folder.
        sizes: by name the committed bytes of each file.

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
        """Append an array's bytes to one of the files."""
        self._files[name].write(np.ascontiguousarray(array).data)

    def commit(self) -> None:
        """Wait until all files have reached the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
