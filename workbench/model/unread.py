"""Weights that stay in their file until they are asked for in a type, and are then read a piece at a time.

transformers maps a checkpoint's files and converts what it reads there. What has been read of a mapping counts as
memory until it is closed, so that a model in 16 bits would take three times its weights on its way out of files in
float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from workbench.core.tensor_files import file_pieces, tensor_places
from workbench.model.weights import ModelError


class Unread(Tensor):
    """A mapped tensor that `to` reads from its file, not through the mapping; all else is done with the mapping."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # results are plain tensors
    _from: tuple[Path, tuple[int, int]]

    @staticmethod
    def of(mapped: Tensor, file: Path, place: tuple[int, int]) -> Unread:
        """A tensor that is mapped from a file, whose bytes lie there between two places."""
        made = mapped.as_subclass(Unread)
        made._from = file, place
        return made

    def __getitem__(self, index: Any) -> Tensor:
        return self if index is Ellipsis else self.as_subclass(Tensor)[index]

    def to(self, *args: Any, **how: Any) -> Tensor:
        """A plain tensor, the mapped one where its type is the same."""
        dtype = how.get("dtype")
        if args or dtype in (None, self.dtype):
            return self.as_subclass(Tensor).to(*args, **how)
        made = torch.empty(self.numel(), dtype=dtype)
        done = 0
        for piece in file_pieces(*self._from, ModelError):
            values = piece.view(self.dtype)
            made[done : done + len(values)] = values
            done += len(values)
        return made.view(self.shape).to(how.get("device"))


class UnreadFile:
    """A safetensors file as `safe_open` opens it, whose slices are `Unread` as long as nobody cuts them."""

    def __init__(self, file: str | Path, **how: Any):
        self._opened: Any = safe_open(file, **{"framework": "pt"} | how)
        self._file = Path(file)
        self._places = tensor_places(self._file, ModelError)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def __enter__(self) -> UnreadFile:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def get_slice(self, name: str) -> Any:
        """The tensor of a name, unread."""
        return _Slice(self._opened.get_slice(name), self._file, self._places[name])


class _Slice:
    def __init__(self, part: Any, file: Path, place: tuple[int, int]):
        self._part, self._from = part, (file, place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __getitem__(self, index: Any) -> Tensor:
        found = self._part[index]
        start, stop = self._from[1]
        whole = index is Ellipsis and found.device.type == "cpu" and found.nbytes == stop - start
        return Unread.of(found, *self._from) if whole else found


def unread_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, each `Unread`."""
    with UnreadFile(file) as opened:
        return {name: opened.get_slice(name)[...] for name in opened.keys()}  # noqa: SIM118 - it is no mapping


@contextlib.contextmanager
def reading_in_pieces() -> Iterator[None]:
    """A block in which transformers opens files of weights as `UnreadFile`; inside `building`, which locks it."""
    from transformers import modeling_utils

    reader: Any = modeling_utils
    former = reader.safe_open
    reader.safe_open = UnreadFile
    try:
        yield
    finally:
        reader.safe_open = former
