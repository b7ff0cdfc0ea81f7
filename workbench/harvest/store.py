"""Activations kept on disk, memory-mapped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import numpy as np
import torch
from annotated_types import Ge, MinLen
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.failures import explained
from workbench.core.files import clear_leftovers, replacing
from workbench.core.forms import read_json
from workbench.core.locks import alone, clear_lock
from workbench.core.paths import check_links, is_plain_name
from workbench.core.progress import Progress, remembering
from workbench.core.provenance import command_line
from workbench.core.settings import difference
from workbench.core.type_words import shown
from workbench.harvest.activations import COLUMNS, Activations, Harvest, HarvestError
from workbench.harvest.checksums import CheckedRows, SummedFile, blocks_of
from workbench.model.massive import massive

MOST_LOST = 0.01
"""The share of an activation's length that storing it may lose; rounding to float16 loses at most a 2,000th."""
SMALL = 0.1
"""An activation below this share of its batch's median length may lose more: it is small beside what is kept."""

PROGRESS = "progress.json"


@with_config(ConfigDict(extra="allow"))
class StoreNote(TypedDict):
    """`progress.json`; it holds versions and command too."""

    harvest: dict[str, Any]
    dtype: Literal["float16", "float32"]
    widths: Annotated[dict[str, Positive], MinLen(1)]
    committed: Natural
    complete: bool
    checksums: NotRequired[dict[str, list[Natural]]]
    """Of the blocks of each file; see `checksums.py`. Older stores have none."""


class Store:
    """Activations on disk, memory-mapped: one raw file per hook point and `progress.json`, which says how much counts.

    Files grow at the end; `progress.json` is replaced when what it counts has reached the disk, so that a killed writer
    loses at most the work since then. `store[rows]` reads rows into memory, as float32.

    Opening compares the sizes of the files with the note. What they hold is compared with the note's checksums block by
    block (4 MiB), each when it is first read through `store[rows]` or `run`, and wholly by `check`. `values` and
    `columns` themselves are not checked.

    Args:
        folder: where it is.
        hook_points: which of its hook points to read; None for all.

    Attributes:
        note: the settings of the harvest, versions, command; `committed` tokens; whether it is `complete`; by hook
            point the number of `massive` activations, each beside the others of its batch (see `model.massive`).
        values: by hook point, `[n_tokens, width]`.
        columns: `tokens`, `texts` and `positions`, `[n_tokens]`.
    """

    opened_by: ClassVar[str] = "wb.harvest.Store"

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
            size = file.stat().st_size if file.exists() else 0
            if size < needed or (earlier["complete"] and size > needed):
                wrong = "is missing or cut short" if size < needed else f"holds more than {PROGRESS} says"
                raise HarvestError(f"{file} {wrong}; harvest into {self.folder} anew.")
            return np.memmap(file, dtype, "r", shape=shape) if rows else np.zeros(shape, dtype)

        self.values = {
            name: mapped(_file(self.folder, name), self.note["dtype"], rows, width)
            for name, width in self.note["widths"].items()
            if name in self.hook_points
        }
        self.columns = {name: mapped(_file(self.folder, name), np.int32, rows) for name in COLUMNS}
        sums = self.note.get("checksums")
        self._checked = {}
        if sums is not None:
            arrays = {**self.values, **self.columns}
            self._checked = {name: CheckedRows(array, sums.get(name, ())) for name, array in arrays.items()}
        if lacking := next((name for name, one in self._checked.items() if not one.fits), ""):
            raise HarvestError(f"{self.folder / PROGRESS} lacks checksums of {lacking}; harvest into it anew.")

    def __len__(self) -> int:
        return self.note["committed"]

    @property
    def complete(self) -> bool:
        """Whether the harvest came to its end."""
        return self.note["complete"]

    def __getitem__(self, rows: slice | Tensor) -> Activations:
        at: Any = rows if isinstance(rows, slice) else rows.numpy()
        self._check(at)
        values = {name: torch.from_numpy(value[at].astype(np.float32)) for name, value in self.values.items()}
        return Activations(values, *(torch.from_numpy(self.columns[name][at].astype(np.int64)) for name in COLUMNS))

    def check(self) -> None:
        """Compare all that the files hold with the checksums of the note; a store without any passes.

        Raises:
            HarvestError: a file was altered.
        """
        self._check(slice(None))

    def _check(self, rows: slice | np.ndarray) -> None:
        for name, one in self._checked.items():
            if one.altered(rows):
                file = _file(self.folder, name)
                raise HarvestError(f"{file} was altered since it was written; harvest into {self.folder} anew.")

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
            progress: called with the share done, and in words the speed and an estimate of the time left;
                None: a bar; False: nothing.
            cancel: called before each batch; once it returns True, the store is left incomplete, ready to go on.

        Raises:
            HarvestError: the folder holds another harvest or files of these names that are none, can't be written, or
                float16 can't hold an activation: a value is too large, or one that is not small beside the others of
                its batch (a tenth of their median length) would lose more than 1% of its length.
        """
        folder, stops = Path(folder), remembering(cancel)
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
        if not _is_complete(folder, note):
            with alone(folder, HarvestError):
                if not _is_complete(folder, note):  # by whoever had the lock
                    earlier = _begun(folder, note)
                    parts = harvest.run(earlier["committed"], progress=progress, cancel=stops)
                    _append(folder, earlier, parts, commit_every)
                    if not stops():
                        _commit(folder, earlier | {"complete": True})
        return cls(folder)


def _is_complete(folder: Path, note: dict[str, Any]) -> bool:
    """Whether the harvest of this note has come to its end in a folder.

    Raises:
        HarvestError: another one has, or has begun.
    """
    earlier = _read_progress(folder)
    if earlier is None:
        return False
    wrong = _difference(earlier, note)
    if wrong and not earlier["committed"]:
        return False
    if wrong:
        raise HarvestError(f"{folder} holds another harvest: {wrong}. Choose another folder.")
    if earlier["complete"]:
        clear_leftovers(folder / PROGRESS)
        clear_lock(folder)
    return earlier["complete"]


def _difference(earlier: dict[str, Any], note: dict[str, Any]) -> str:
    return difference(*(one["harvest"] | {"dtype": one["dtype"]} for one in (earlier, note)))


def _begun(folder: Path, note: dict[str, Any]) -> dict[str, Any]:
    """The note of a harvest that has begun in a folder, now or earlier."""
    earlier = _read_progress(folder)
    if earlier is not None:
        if not _difference(earlier, note):
            clear_leftovers(folder / PROGRESS)
            return earlier
        with explained(folder, HarvestError):
            for name in (*earlier["widths"], *COLUMNS):
                _file(folder, name).unlink(missing_ok=True)
    for file in (_file(folder, name) for name in (*note["widths"], *COLUMNS)):
        if file.exists():
            raise HarvestError(f"{file} is there already and is not of a harvest; choose another folder.")
    begun = note | {"committed": 0, "complete": False, "massive": dict.fromkeys(note["widths"], 0)}
    begun |= {"checksums": {name: [] for name in (*note["widths"], *COLUMNS)}}
    _commit(folder, begun)  # before any other file: a file without this one is not ours
    return begun


def _append(folder: Path, note: dict[str, Any], parts: Iterator[Activations], commit_every: float) -> None:
    """Add batches to the files of a folder behind the committed rows; what is there at the end is committed."""
    rows, committed_at = note["committed"], time.monotonic()
    with explained(folder, HarvestError), ExitStack() as stack:
        files = {}
        for name in (*note["widths"], *COLUMNS):
            file = stack.enter_context(open(_file(folder, name), "ab"))
            row = note["widths"].get(name, 1) * np.dtype(note["dtype"] if name in note["widths"] else np.int32).itemsize
            if file.tell() < note["committed"] * row:
                raise HarvestError(f"{file.name} is cut short; delete {folder} and harvest anew.")
            sums = note["checksums"].get(name, ()) if "checksums" in note else None  # an older version began it
            if sums is not None and len(sums) != blocks_of(note["committed"] * row):
                raise HarvestError(f"{folder / PROGRESS} lacks checksums of {name}; delete {folder} and harvest anew.")
            files[name] = SummedFile(file, note["committed"] * row, sums)
        for part in parts:
            for name, value in part.values.items():
                files[name].write(_stored(name, value.cpu(), note["dtype"]).tobytes())
                if "massive" in note:  # an older version's note counts none
                    note["massive"][name] += int(massive(value.norm(dim=-1)).sum())
            for name in COLUMNS:
                files[name].write(getattr(part, name).cpu().numpy().astype(np.int32).tobytes())
            rows += len(part)
            if time.monotonic() - committed_at >= commit_every:
                _commit(folder, _counted(note, rows, files), files.values())
                committed_at = time.monotonic()
        note |= _counted(note, rows, files)
        _commit(folder, note, files.values())


def _counted(note: dict[str, Any], rows: int, files: Mapping[str, SummedFile]) -> dict[str, Any]:
    """The note of so many rows."""
    sums = {name: one.sums for name, one in files.items() if one.sums is not None}
    return note | {"committed": rows} | ({"checksums": sums} if sums else {})


def _stored(name: str, value: Tensor, dtype: str) -> np.ndarray:
    """Activations `[n, width]` as they are stored.

    Raises:
        HarvestError: the type can't hold them.
    """
    with np.errstate(over="ignore"):
        value = value.cpu()
        stored = value.numpy().astype(dtype)
    if not np.isfinite(stored).all():
        raise HarvestError(f"A value at {name} does not fit into {dtype}; use dtype='float32'.")
    if dtype == "float16" and len(value):
        lost = (torch.from_numpy(stored.astype(np.float32)) - value).norm(dim=-1)  # [n]
        norms = value.norm(dim=-1)
        if bool(((lost > MOST_LOST * norms) & (norms >= SMALL * norms.median())).any()):
            raise HarvestError(f"The values at {name} are too small for float16; use dtype='float32'.")
    return stored


def _commit(folder: Path, note: dict[str, Any], files: Iterable[SummedFile] = ()) -> None:
    """Say how many rows count, once they have reached the disk."""
    for file in files:
        file.file.flush()
        os.fsync(file.file.fileno())
    with replacing(folder / PROGRESS, HarvestError, owned=True) as temporary:
        temporary.write_text(json.dumps(note, indent=2))


def _read_progress(folder: Path) -> dict[str, Any] | None:
    check_links(folder, HarvestError)
    file = folder / PROGRESS
    if not file.exists():
        return None
    note = read_json(file, StoreNote, HarvestError, "the note of a store")
    for name in note["widths"]:
        if not is_plain_name(name):
            raise HarvestError(f"{file} names a file outside of its folder, {shown(name)}; harvest anew.")
    return dict(note)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"
