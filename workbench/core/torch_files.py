"""Files of `torch.save` from strangers: tensors and plain data, and nothing that runs.

torch's weights-only loader reads them with nothing added to what it allows. Before that the archive is looked at, so
that what is small on the disk is not large in memory: records are stored as they are, as torch writes them. After it
the content is looked at: mappings, lists, texts, numbers, truth values, None, and plain tensors in memory of their own.
"""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.forms import DEEPEST
from workbench.core.paths import check_ordinary
from workbench.core.type_words import reason_of, shown

LARGEST_STRUCTURE = 16 * 2**20
"""Bytes of a record that holds structure and no tensor's values."""
PLAIN = (str, int, float, bool, type(None))
"""Types of values beside tensors."""


def read_torch(path: Path, error: type[WorkbenchError], what: str) -> Any:
    """The content of a file of `torch.save`, on the processor.

    Args:
        path: the file.
        error: the room's own error.
        what: the file in the sentence of the error: "its ae.pt".

    Raises:
        WorkbenchError: of the given kind: it is damaged, older than torch 1.6, or holds anything but tensors and plain
            data. The message does not name the path.
    """
    check_ordinary(path, error)
    _check_archive(path, error, what)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as wrong:  # what damaged bytes raise is of any kind
        if type(wrong).__name__ == "UnpicklingError":
            raise error(
                f"{what} holds more than tensors and plain data, and none of it was read; save its state_dict() alone"
            ) from wrong
        raise error(f"{what} is damaged ({_first(reason_of(wrong))}); copy it again") from wrong
    _check_content(content, error, what)
    return content


def write_torch(file: Path, content: Mapping[Any, Any]) -> None:
    """Write tensors and plain data as `torch.save` does, for a tool that reads nothing else.

    Args:
        file: the file.
        content: tensors, numbers, texts, truth values, None, and lists and mappings of these.

    Raises:
        OSError: the file can't be written whole, as on a full disk.
    """
    try:
        torch.save(_plain(content), file)
    except RuntimeError as wrong:  # so torch says that the disk took a part
        raise OSError(errno.ENOSPC, "the disk is full, or takes no file of this size") from wrong


def _plain(content: Any) -> Any:
    """Content with tensors of memory of their own, on the processor, in dicts and lists of Python's."""
    if isinstance(content, Tensor):
        return content.detach().cpu().contiguous().clone()
    if isinstance(content, Mapping):
        return {key: _plain(one) for key, one in content.items()}
    return [_plain(one) for one in content] if isinstance(content, list | tuple) else content


def _check_archive(path: Path, error: type[WorkbenchError], what: str) -> None:
    """Refuse what is no archive of plain records."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as wrong:
        raise error(
            f"{what} is damaged, or torch before 1.6 wrote it ({_first(reason_of(wrong))}); save it again"
        ) from wrong
    for record in records:
        structure = "/data/" not in record.filename
        if record.compress_type != zipfile.ZIP_STORED or (structure and record.file_size > LARGEST_STRUCTURE):
            raise error(f"{what} is no file that torch wrote: {shown(record.filename)} is packed or too large")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise error(f"{what} is no file that torch wrote: its records are larger than the file")


def _check_content(content: Any, error: type[WorkbenchError], what: str) -> None:
    """Refuse what is neither a plain tensor nor plain data, and what is nested too deeply; each thing is seen once."""
    seen: set[int] = set()
    level = [content]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for one in level:
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, Tensor):
                _check_tensor(one, error, what)
            elif isinstance(one, Mapping):
                below += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                below += one
            elif not isinstance(one, PLAIN):
                raise error(
                    f"{what} holds a {type(one).__name__} beside tensors and plain data; save its tensors alone"
                )
        if not below:
            return
        level = below
    raise error(f"{what} is nested too deeply")


def _check_tensor(tensor: Tensor, error: type[WorkbenchError], what: str) -> None:
    """Refuse a tensor that is no plain one, or that has fewer values in memory than it shows."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_quantized
    if not plain or tensor.device.type != "cpu":
        raise error(f"{what} holds a tensor of a special kind ({_first(str(tensor.dtype))}); save plain ones")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise error(f"{what} holds a tensor that shows more values than are there; save it with .contiguous()")


def _first(text: str) -> str:
    """The first line of a message, not too long."""
    return (text.strip().splitlines() or [""])[0][:120].rstrip(".: ")
