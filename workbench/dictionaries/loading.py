"""`load_dictionary`: a dictionary from a folder of any known format."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from workbench.core.checks import checked
from workbench.core.paths import check_links
from workbench.core.shipped import missing, shipped
from workbench.core.type_words import reason_of
from workbench.dictionaries import formats
from workbench.dictionaries.folder import CONFIG, WEIGHTS, DictionaryError, check_finite
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.remembered import remembered_hash
from workbench.model.grad_mode import lasting
from workbench.model.placing import chosen_device


@checked(DictionaryError)
@lasting
def load_dictionary(path: str | Path, *, device: str | torch.device | None = None) -> Dictionary:
    """Open a dictionary from a folder.

    Weights in float32 stay in their file until they are used: every value is looked at once, a few MiB at a time, and
    a feature's direction reads a row. The first `encode` brings the encoder into memory; 16-bit weights become float32
    in memory at once.

    Args:
        path: a folder that `save`, SAELens or another tool with a file in `formats/` wrote; or the name of a dictionary
            that comes with Workbench, such as "resid-15".
        device: where its tensors go, such as "cuda"; "auto" for CUDA, else MPS, else the processor; None for the
            processor. A dictionary follows the model that it is used on.

    Raises:
        DictionaryError: there is none, it is damaged, holds a link out of its folder, or is of a kind that this version
            does not know; or this machine has no such device.
    """
    place = None if device is None else chosen_device(device, DictionaryError)
    folder = Path(path)
    if not folder.exists():
        folder = bundled_folder(path)
    check_links(folder, DictionaryError)
    form = next((one for one in known_formats() if one.matches(folder)), None)
    if form is None:
        missing = next((name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()), WEIGHTS)
        raise DictionaryError(
            f"{folder} is not a dictionary: it has no {missing}; give the folder that save() or SAELens wrote."
        )
    try:
        dictionary = form.read(folder)
        if remembered_hash(dictionary) is None and not dictionary.lazy:
            check_finite(dictionary.tensors())
    except KeyError as error:
        raise DictionaryError(f"{folder} can't be used: it lacks {reason_of(error)}.") from error
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise DictionaryError(f"{folder} can't be used: {reason_of(error)}.") from error
    dictionary.folder = str(folder)
    return dictionary if place is None or place.type == "cpu" else dictionary.to(place)


def bundled() -> list[str]:
    """The names of the dictionaries that come with Workbench."""
    return list(_shipped())


def bundled_folder(name: str | Path) -> Path:
    """The folder of a dictionary that comes with Workbench, by its name.

    Raises:
        DictionaryError: none has this name, or none is installed.
    """
    found = _shipped()
    if str(name) not in found:
        others = f"{', '.join(found)} come with Workbench" if found else missing("dictionaries")
        raise DictionaryError(f"There is no folder {name}; {others}.")
    return found[str(name)]


def _shipped() -> dict[str, Path]:
    return shipped("dictionaries", f"*/{CONFIG}")


def known_formats() -> Iterator[ModuleType]:
    """The modules of `formats/`, by name; each has `matches` and `read`."""
    for module in sorted(pkgutil.iter_modules(formats.__path__), key=lambda one: one.name):
        yield importlib.import_module(f"{formats.__name__}.{module.name}")
