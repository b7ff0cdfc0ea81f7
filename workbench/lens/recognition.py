"""The formats of lenses on disk, found in `lens/formats/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

from workbench.core.paths import check_links, check_ordinary
from workbench.core.type_words import shown
from workbench.lens import formats
from workbench.lens.errors import LensError

NATIVE = "workbench"
"""The format that keeps all that is known of a lens."""


class Format(Protocol):
    """A module of `formats/`, whose docstring says what each has to do."""

    TITLE: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Any]
    check: Callable[[Any, Any], None]
    write: Callable[[Any, Path], None]


def known_formats() -> Iterator[tuple[str, Format]]:
    """The modules of `formats/` by name."""
    for module in sorted(pkgutil.iter_modules(formats.__path__), key=lambda one: one.name):
        yield module.name, cast(Format, importlib.import_module(f"{formats.__name__}.{module.name}"))


def format_called(name: str) -> Format:
    """The format of a name, with "-" or "_"; raises `LensError` if there is none."""
    known = dict(known_formats())
    if name.replace("-", "_") not in known:
        raise LensError(f"A lens is written in the formats {', '.join(known)}, not in {shown(name)}.")
    return known[name.replace("-", "_")]


def format_of(path: Path) -> Format:
    """The one format that a folder or file has.

    Raises:
        LensError: none of the known ones or several, or the path is or holds a link out of it, or is no ordinary file.
    """
    if not path.exists():
        raise LensError(f"There is no {path}.")
    check_ordinary(path, LensError)
    check_links(path, LensError)
    known = [one for _, one in known_formats()]
    found = [one for one in known if one.matches(path)]
    titles = " or ".join(one.TITLE for one in found or known)
    if not found:
        raise LensError(f"{path} is not a lens of {titles}; give the folder in which the tool wrote it.")
    if len(found) > 1:
        raise LensError(f"{path} could be a lens of {titles}; put the files of each into a folder of its own.")
    return found[0]
