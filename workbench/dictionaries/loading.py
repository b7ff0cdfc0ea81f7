"""`load_dictionary`: a dictionary from a folder or file of any known format."""

from __future__ import annotations

from pathlib import Path

import torch

from workbench.core.checks import checked
from workbench.core.shipped import missing, shipped
from workbench.dictionaries.folder import CONFIG, DictionaryError, check_finite
from workbench.dictionaries.hub_names import HUB, repository_of
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import explained, format_of, in_words, part_names, parts_of
from workbench.dictionaries.remembered import is_examined
from workbench.model.grad_mode import lasting
from workbench.model.placing import chosen_device


@checked(DictionaryError)
@lasting
def load_dictionary(path: str | Path, *, device: str | torch.device | None = None) -> Dictionary:
    """Open a dictionary from a folder or a file, of the format that what lies there shows.

    Weights in float32 stay in their file until they are used: every value is looked at once, a few MiB at a time, and
    a feature's direction reads a row. The first `encode` brings the encoder into memory; 16-bit weights become float32
    in memory at once.

    Args:
        path: a folder or file that `save`, SAELens or another tool with a file in `formats/` wrote; or the name of a
            dictionary that comes with Workbench, such as "resid-15".
        device: where its tensors go, such as "cuda"; "auto" for CUDA, else MPS, else the processor; None for the
            processor. A dictionary follows the model that it is used on.

    Raises:
        DictionaryError: there is none, there are several, it is damaged, holds a link out of its folder, or is of a
            kind or format that this version does not know; or this machine has no such device.
    """
    place = None if device is None else chosen_device(device, DictionaryError)
    dictionary = opened(local(path))
    return dictionary if place is None or place.type == "cpu" else dictionary.to(place)


def opened(path: Path) -> Dictionary:
    """The one dictionary in a folder or file, on the processor; see `load_dictionary`."""
    form = format_of(path)
    parts = parts_of(path, form)
    if len(parts) > 1:
        raise DictionaryError(
            f"{path} holds {len(parts):,} dictionaries, {in_words(part_names(path, parts))}; give the path of one, or "
            "open all with wb.dictionaries.load_set."
        )
    if parts[0] != path:
        return opened(parts[0])
    with explained(path):
        dictionary = form.read(path)
        if not is_examined(dictionary):
            check_finite(dictionary.tensors())
    if source := repository_of(path):
        dictionary.provenance[HUB] = source.address
    dictionary.folder = str(path)
    return dictionary


def local(path: str | Path) -> Path:
    """The folder or file that a path or a name stands for.

    Raises:
        DictionaryError: there is none.
    """
    return Path(path) if Path(path).exists() else bundled_folder(path)


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
