"""The formats in which a dictionary is written for other tools."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from workbench.core.type_words import shown
from workbench.dictionaries import formats
from workbench.dictionaries.folder import DictionaryError, check_finite


def write_as(format: str, dictionary: Any, path: Path) -> None:
    """Write a dictionary in the format of another tool.

    Args:
        format: the name of a file in `formats/` that has `write`, with "-" or "_": "circuit-tracer".
        dictionary: a `Dictionary` with weights of its own.
        path: the folder.

    Raises:
        DictionaryError: there is no such format, or it has no place for this kind; a weight is no finite number; or the
            folder can't be written.
    """
    known = {}
    for module in pkgutil.iter_modules(formats.__path__):
        write = vars(importlib.import_module(f"{formats.__name__}.{module.name}")).get("write")
        if write is not None:
            known[module.name] = write
    if (name := format.replace("-", "_")) not in known:
        names = ", ".join(sorted(known))
        raise DictionaryError(f"A dictionary is written in the formats {names}, not in {shown(format)}.")
    try:
        check_finite(dictionary.tensors())
    except DictionaryError as error:
        raise DictionaryError(f"{dictionary.name} can't be saved: {error}.") from error
    known[name](dictionary, path)
