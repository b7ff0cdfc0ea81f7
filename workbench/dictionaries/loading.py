"""`load_dictionary`: a dictionary from a folder or file of any known format, or of the hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen

from workbench.core.checks import checked
from workbench.core.progress import Progress
from workbench.core.shipped import missing, shipped
from workbench.core.steady import read_steadily
from workbench.dictionaries.folder import CONFIG, DictionaryError, check_finite
from workbench.dictionaries.foreign import Said
from workbench.dictionaries.hub import fetch
from workbench.dictionaries.hub_names import HUB, PREFIX, as_address, repository_of
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import Format, explained, format_of, in_words, part_names, parts_of
from workbench.dictionaries.remembered import is_examined
from workbench.dictionaries.saelens_registry import Entry, entry_called
from workbench.model.grad_mode import lasting
from workbench.model.placing import chosen_device

Text = Annotated[str, MinLen(1)]
"""A text that says something."""


@checked(DictionaryError)
@lasting
def load_dictionary(
    path: str | Path,
    *,
    hook_point: Text | None = None,
    writes: Text | None = None,
    model_name: Text | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Dictionary:
    """Open a dictionary from a folder, a file or the hub, of the format that what lies there shows.

    Weights stay in their file until they are used: every value is looked at once, a few MiB at a time, and a feature's
    direction reads a row. The first `encode` brings the encoder into memory, in float32 where the file has 16 bits.
    16-bit weights of formats whose files need arithmetic first (SAELens, dictionary_learning, Llama Scope) become
    float32 in memory at once.

    Of the hub, the files that the format needs are fetched into the cache of `huggingface_hub`, and nothing is asked
    where `HF_HUB_OFFLINE` is set. The dictionary's provenance holds the repository, the folder and the commit under
    "hub"; after "hf:" these open the same dictionary, without the hub once it is there.

    Args:
        path: a folder or file that `save`, SAELens or another tool with a file in `formats/` wrote; as a text also the
            name of a dictionary that comes with Workbench, such as "resid-15"; of one on the hub, such as
            "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", with "@REVISION" at its end if need be;
            or SAELens's release and id with "/" between, where sae-lens is installed. What exists here has precedence,
            and a name with "hf:" before it is one of the hub.
        hook_point: where it reads, and writes unless `writes` is given, for files that don't say it, as for a
            `params.npz` that is not in its publisher's folders; several are joined by " + ".
        writes: where a transcoder writes.
        model_name: the model that it was made for. What the files say has precedence: another name is refused.
        device: where its tensors go, such as "cuda"; "auto" for CUDA, else MPS, else the processor; None for the
            processor. A dictionary follows the model that it is used on.
        progress: called with the share of a download; None: a bar; False: nothing.
        cancel: asked about ten times a second during a download, which it stops; what was fetched stays in the cache.

    Raises:
        DictionaryError: there is none, there are several, it is damaged, holds a link out of its folder, or is of a
            kind or format that this version does not know; its place is not known, or its files say another than the
            arguments; the hub can't be reached, or `cancel` returned True; or
            this machine has no such device.
    """
    place = None if device is None else chosen_device(device, DictionaryError)
    said = Said(hook_point or "", writes or "", model_name or "")
    dictionary = opened(replace(located(path, progress=progress, cancel=cancel), said=said))
    return dictionary if place is None or place.type == "cpu" else dictionary.to(place)


@dataclass(frozen=True)
class Place:
    """Where dictionaries lie on this machine, and what is known of them beside their files."""

    path: Path
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the record takes over where the files do not say it."""
    stated: dict[str, Any] = field(default_factory=dict)
    """Settings that a list of releases states; see `saelens_registry`."""
    said: Said = field(default_factory=Said)
    """What the caller says where the files do not."""


def located(
    path: str | Path,
    *,
    several: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Place:
    """The folder or file that a path or a name stands for, fetched from the hub if need be; see `load_dictionary`.

    Args:
        path: a `Path` is never a name.
        several: fetch a folder of several dictionaries too, which is refused otherwise.

    Raises:
        DictionaryError: there is none, or it can't be fetched.
    """
    entry = entry_on_hub(path)
    if entry is None:
        return Place(Path(path) if Path(path).exists() else bundled_folder(path))
    there = fetch(entry.address, several=several, progress=progress, cancel=cancel)
    return Place(there, entry.provenance, entry.stated)


def entry_on_hub(path: str | Path) -> Entry | None:
    """What a name stands for on the hub; None for a path or name of what lies here, and for what can be no name.

    Raises:
        DictionaryError: it begins with "hf:" and is no name, or is no id of a release of SAELens.
    """
    if isinstance(path, Path) or (not path.startswith(PREFIX) and (Path(path).exists() or path in bundled())):
        return None
    if entry := entry_called(path):
        return entry
    address = as_address(path)
    return Entry(address) if address else None


def opened(place: Place) -> Dictionary:
    """The one dictionary in a folder or file, on the processor, its files all in one state; see `load_dictionary`."""
    return read_steadily(lambda: _opened(place), (place.path,), DictionaryError)


def _opened(place: Place) -> Dictionary:
    """The dictionary in the files as they are now."""
    path = place.path
    form = format_of(path)
    parts = parts_of(path, form)
    if len(parts) > 1:
        raise DictionaryError(
            f"{path} holds {len(parts):,} dictionaries, {in_words(part_names(path, parts))}; give the path of one, or "
            "open all with wb.dictionaries.load_set."
        )
    if parts[0] != path:
        return opened(replace(place, path=parts[0]))
    with explained(path):
        dictionary = _read(form, place)
        place.said.check(dictionary)
        if not is_examined(dictionary) and not dictionary.lazy:
            check_finite(dictionary.tensors())
    dictionary.provenance = place.provenance | dictionary.provenance
    if source := repository_of(path):
        dictionary.provenance[HUB] = source.address
    dictionary.folder = str(path)
    return dictionary


def _read(form: Format, place: Place) -> Dictionary:
    """The dictionary as its format reads it, with the settings that a list of releases states."""
    if "said" in inspect.signature(form.read).parameters and not place.stated:
        told: Callable[[Path, Said], Dictionary] = form.read  # type: ignore[assignment]
        return told(place.path, place.said)
    if not place.stated:
        return form.read(place.path)
    if "stated" in inspect.signature(form.read).parameters:
        read: Callable[[Path, Mapping[str, Any]], Dictionary] = form.read  # type: ignore[assignment]
        return read(place.path, place.stated)
    if changed := place.stated.keys() - {"norm_scaling_factor"}:  # a format whose files lack the factor refuses them
        raise DictionaryError(
            f"SAELens's list of releases states its {in_words(sorted(changed))}, which is not applied to those of "
            f"{form.TITLE}; open it with SAELens and save it from there"
        )
    return form.read(place.path)


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
