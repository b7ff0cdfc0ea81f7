"""Activations kept on disk, memory-mapped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, MinLen
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.core.settings import difference
from workbench.harvest.activations import COLUMNS, Activations, Harvest, HarvestError


@with_config(ConfigDict(extra="allow"))
class StoreNote(TypedDict):
    """`progress.json`; it holds versions and command too."""

    harvest: dict[str, Any]
    dtype: Literal["float16", "float32"]
    widths: Annotated[dict[str, Positive], MinLen(1)]
    committed: Natural
    complete: bool


class Store:
    """Activations on disk, memory-mapped: one raw file per hook point and `progress.json`, which says how much counts.

    Files grow at the end; `progress.json` is replaced when what it counts has reached the disk, so that a killed writer
    loses at most the work since then. `store[rows]` reads rows into memory, as float32.

    Args:
        folder: where it is.
        hook_points: which of its hook points to read; None for all.

    Attributes:
        note: the settings of the harvest, versions, command; `committed` tokens; whether it is `complete`.
        values: by hook point, `[n_tokens, width]`.
        columns: `tokens`, `texts` and `positions`, `[n_tokens]`.
    """

    @checked(HarvestError)
    def __init__(self, folder: str | Path, hook_points: Sequence[str] | None = None):
        self.folder = Path(folder)
        earlier = _read_progress(self.folder)
        if earlier is None:
            raise HarvestError(f"{self.folder} holds no activations; there is no progress.json.")
        self.note = earlier
        rows = self.note["committed"]
        for name in hook_points or ():
            if name not in earlier["widths"]:
                raise HarvestError(
                    f"{self.folder} holds no activations at {name}; it holds {', '.join(earlier['widths'])}."
                )
        self.hook_points = list(hook_points or earlier["widths"])

        def mapped(file: Path, dtype: Any, *shape: int) -> np.ndarray:
            needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if not file.exists() or file.stat().st_size < needed:
                raise HarvestError(f"{file} is missing or cut short; harvest into {self.folder} anew.")
            return np.memmap(file, dtype, "r", shape=shape) if rows else np.zeros(shape, dtype)

        self.values = {
            name: mapped(_file(self.folder, name), self.note["dtype"], rows, width)
            for name, width in self.note["widths"].items()
            if name in self.hook_points
        }
        self.columns = {name: mapped(_file(self.folder, name), np.int32, rows) for name in COLUMNS}

    def __len__(self) -> int:
        return self.note["committed"]

    @property
    def complete(self) -> bool:
        """Whether the harvest came to its end."""
        return self.note["complete"]

    def __getitem__(self, rows: slice | Tensor) -> Activations:
        at: Any = rows if isinstance(rows, slice) else rows.numpy()
        values = {name: torch.from_numpy(value[at].astype(np.float32)) for name, value in self.values.items()}
        return Activations(values, *(torch.from_numpy(self.columns[name][at].astype(np.int64)) for name in COLUMNS))

    @checked(HarvestError)
    def run(self, skip: Natural = 0) -> Iterator[Activations]:
        """The activations in the order in which they were harvested."""
        for start in range(skip, len(self), 4096):
            yield self[start : start + 4096]

    def settings(self) -> dict[str, Any]:
        """Of the harvest, and the type of the numbers."""
        return {**self.note["harvest"], "hook_points": self.hook_points, "dtype": self.note["dtype"]}

    @classmethod
    @checked(HarvestError)
    def write(
        cls,
        harvest: Harvest,
        folder: str | Path,
        *,
        dtype: Literal["float16", "float32"] = "float16",
        commit_every: Annotated[Number, Ge(0)] = 2.0,
        progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Store:
        """Harvest into a folder, or go on where an earlier call stopped; the result is the same.

        Args:
            harvest: what to read.
            folder: where to; each rank needs its own.
            dtype: "float16" or "float32".
            commit_every: seconds between commits, which wait for the disk; a killed writer loses at most so much work.
            progress: called with the share done, and in words the speed and an estimate of the time left.
            cancel: called before each batch; once it returns True, the store is left incomplete, ready to go on.

        Raises:
            HarvestError: the folder holds another harvest, or a value does not fit into float16.
        """
        folder = Path(folder)
        if harvest.repeat and harvest.tokens is None:
            raise HarvestError("A harvest that repeats without a limit does not fit on a disk; give tokens.")
        names = list(harvest.hook_points)
        note: dict[str, Any] = {
            "harvest": harvest.settings(),
            "dtype": dtype,
            "widths": {name: harvest.model.hook_points[name].width for name in names},
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "command": command_line(),
        }
        earlier = _read_progress(folder) or note | {"committed": 0, "complete": False}
        wrong = difference(earlier["harvest"] | {"dtype": earlier["dtype"]}, note["harvest"] | {"dtype": dtype})
        if wrong:
            raise HarvestError(f"{folder} holds another harvest: {wrong}. Choose another folder.")
        if not earlier["complete"]:
            _append(folder, earlier, harvest.run(earlier["committed"], progress=progress, cancel=cancel), commit_every)
            if not (cancel is not None and cancel()):
                _commit(folder, earlier | {"complete": True})
        return cls(folder)


def _append(folder: Path, note: dict[str, Any], parts: Iterator[Activations], commit_every: float) -> None:
    """Add batches to the files of a folder behind the committed rows; what is there at the end is committed."""
    rows, committed_at = note["committed"], time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {}
        for name in (*note["widths"], *COLUMNS):
            file = stack.enter_context(open(_file(folder, name), "ab"))
            row = note["widths"].get(name, 1) * np.dtype(note["dtype"] if name in note["widths"] else np.int32).itemsize
            if file.tell() < note["committed"] * row:
                raise HarvestError(f"{file.name} is cut short; delete {folder} and harvest anew.")
            file.truncate(note["committed"] * row)
            files[name] = file
        for part in parts:
            for name, value in part.values.items():
                with np.errstate(over="ignore"):
                    stored = value.cpu().numpy().astype(note["dtype"])
                if not np.isfinite(stored).all():
                    raise HarvestError(f"A value at {name} does not fit into {note['dtype']}; use dtype='float32'.")
                files[name].write(stored.tobytes())
            for name in COLUMNS:
                files[name].write(getattr(part, name).cpu().numpy().astype(np.int32).tobytes())
            rows += len(part)
            if time.monotonic() - committed_at >= commit_every:
                _commit(folder, note | {"committed": rows}, files.values())
                committed_at = time.monotonic()
        _commit(folder, note | {"committed": rows}, files.values())
        note["committed"] = rows


def _commit(folder: Path, note: dict[str, Any], files: Iterable[IO[bytes]] = ()) -> None:
    """Say how many rows count, once they have reached the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    with replacing(folder / "progress.json") as temporary:
        temporary.write_text(json.dumps(note, indent=2))


def _read_progress(folder: Path) -> dict[str, Any] | None:
    file = folder / "progress.json"
    return dict(read_json(file, StoreNote, HarvestError, "the note of a store")) if file.exists() else None


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"
