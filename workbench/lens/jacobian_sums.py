"""The sums of a fit of a Jacobian lens, and the file that keeps them between calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural
from workbench.core.files import replacing
from workbench.core.forms import parse_json
from workbench.core.hashing import fingerprint, hash_of, not_finite
from workbench.core.paths import check_ordinary
from workbench.core.type_words import reason_of
from workbench.lens.errors import LensError

OURS = "workbench"
"""The key of the file's metadata with what it says, as JSON."""


class SavedSums(TypedDict):
    """What the file says."""

    format: Literal[1]
    settings: dict[str, Any]
    next: Natural
    done: Natural
    tokens: Natural
    sha256: str


@dataclass(eq=False)
class Sums:
    """Sums over the texts that are done."""

    path: Path | None
    settings: Mapping[str, Any]
    """All that decides about them but for the number of texts."""
    total: Tensor = field(repr=False)
    """`[layers, d_model, d_model]` in float32, on the processor."""
    next: int = 0
    """The text that comes next."""
    done: int = 0
    """Texts that count."""
    tokens: int = 0
    """Theirs."""

    @classmethod
    def opened(cls, path: Path | None, settings: Mapping[str, Any], shape: tuple[int, ...]) -> Sums:
        """The sums in a file, or new ones where there is none.

        Raises:
            LensError: a file that is damaged or holds something else, or the sums of another fit.
        """
        if path is None or not path.exists():
            return cls(path, settings, torch.zeros(shape))
        note, total = _read(path)
        differ = [name for name in settings if note["settings"].get(name) != settings[name]]
        if differ or note["settings"].keys() != settings.keys() or total.shape != shape:
            names = ", ".join(differ) or "shape"
            raise LensError(f"{path} holds another fit, which differs in {names}; choose another checkpoint.")
        return cls(path, settings, total, note["next"], note["done"], note["tokens"])

    def add(self, jacobians: Tensor, tokens: int) -> None:
        """Add the Jacobians of one text, `[layers, d_model, d_model]`."""
        self.total += jacobians.to(self.total.device)
        self.done += 1
        self.tokens += tokens

    def save(self) -> None:
        """Write the file, where there is to be one; raises `LensError` where it can't be written."""
        if self.path is None:
            return
        note: dict[str, Any] = {"format": 1, "settings": dict(self.settings)}
        note |= {"next": self.next, "done": self.done, "tokens": self.tokens}
        if self.path.exists():
            _read(self.path)  # what another program wrote is not replaced
        with replacing(self.path, LensError, owned=self.path.exists()) as temporary:
            text = json.dumps(note | {"sha256": _seal(note, self.total)})
            save_file({"sums": self.total}, temporary, {OURS: text})


def _seal(note: Mapping[str, Any], total: Tensor) -> str:
    return hash_of({**note, "tensors": fingerprint({"sums": total})})


def _read(path: Path) -> tuple[SavedSums, Tensor]:
    """What a file says, and its sums; raises `LensError` where it was not written by `Sums.save`."""
    if path.is_dir():
        raise LensError(f"{path} is a folder; the checkpoint of a fit is a file.")
    check_ordinary(path, LensError)
    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, [*file.keys()]
            total = file.get_tensor("sums") if names == ["sums"] else None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LensError(f"{path} is damaged or cut short ({reason_of(error)}); remove it.") from error
    if total is None or OURS not in metadata:
        raise LensError(f"{path} holds no sums of a Jacobian lens; choose another checkpoint.")
    note = parse_json(metadata[OURS], SavedSums, LensError, f"{path} holds no sums of a Jacobian lens")
    plain: dict[str, Any] = {**note}
    if plain.pop("sha256") != _seal(plain, total) or not_finite({"sums": total}) or total.dtype != torch.float32:
        raise LensError(f"{path} was altered after it was saved; remove it.")
    return note, total
