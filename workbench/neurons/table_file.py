"""Decoded tables in the cache on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core.cache import cache_folder, in_use, optional
from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing
from workbench.core.forms import parse_json
from workbench.core.hashing import fingerprint

FORMAT = 1
"""Version of the table on disk."""


def table_file(name: str) -> Path:
    """The file of a table in the cache."""
    return cache_folder() / "decodings" / f"{name}.safetensors"


def write_table(file: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write a table with a note on what it is, whole or not at all; a cache that can't be written stays without it."""
    note = {**about, "sha256": fingerprint(tensors)}
    with optional(file), replacing(file, owned=True) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(note)})


def read_table(file: Path, about: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors of a table; None if there is none, or its note or its content is another one."""
    try:
        if not file.exists():
            return None
        with safe_open(file, "pt") as opened:
            note = parse_json(opened.metadata()["about"], dict[str, Any], WorkbenchError, "Its note is damaged")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if {**note, **about} == note and note["sha256"] == fingerprint(tensors):
            in_use(file)
            return tensors
        reason = "it is altered or of another version"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    logging.getLogger("workbench").warning("The decoded table %s is not used (%s); decoding anew.", file, reason)
    return None
