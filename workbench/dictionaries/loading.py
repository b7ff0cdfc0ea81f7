"""`load_dictionary`: a dictionary from a folder of any known format."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from workbench.core.checks import checked
from workbench.core.paths import check_links
from workbench.core.type_words import reason_of
from workbench.dictionaries import formats
from workbench.dictionaries.folder import CONFIG, WEIGHTS, DictionaryError
from workbench.dictionaries.protocol import Dictionary

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "dictionaries"
"""Folder of the dictionaries that come with Workbench."""


@checked(DictionaryError)
def load_dictionary(path: str | Path) -> Dictionary:
    """Read a dictionary from a folder.

    Args:
        path: a folder that `save`, SAELens or another tool with a file in `formats/` wrote; or the name of a dictionary
            that comes with Workbench, such as "resid-15".

    Raises:
        DictionaryError: there is none, it is damaged, holds a link out of its folder, or is of a kind that this version
            does not know.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled():
        folder = BUNDLED / folder
    elif not folder.exists() and bundled():
        raise DictionaryError(f"There is no folder {path}; {', '.join(bundled())} come with Workbench.")
    check_links(folder, DictionaryError)
    form = next((one for one in known_formats() if one.matches(folder)), None)
    if form is None:
        missing = next(name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file())
        raise DictionaryError(
            f"{folder} is not a dictionary: it has no {missing}; give the folder that save() or SAELens wrote."
        )
    try:
        dictionary = form.read(folder)
    except KeyError as error:
        raise DictionaryError(f"{folder} can't be used: it lacks {reason_of(error)}.") from error
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise DictionaryError(f"{folder} can't be used: {reason_of(error)}.") from error
    dictionary.folder = str(folder)
    return dictionary


def bundled() -> list[str]:
    """The names of the dictionaries that come with Workbench."""
    return sorted(file.parent.name for file in BUNDLED.glob(f"*/{CONFIG}"))


def known_formats() -> Iterator[ModuleType]:
    """The modules of `formats/`, by name; each has `matches` and `read`."""
    for module in sorted(pkgutil.iter_modules(formats.__path__), key=lambda one: one.name):
        yield importlib.import_module(f"{formats.__name__}.{module.name}")
