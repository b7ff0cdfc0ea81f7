"""Lenses from files: of a path, of a name, or the one that is kept for a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from workbench.core.checks import checked
from workbench.core.shipped import folders, missing, shipped
from workbench.lens.errors import LensError
from workbench.lens.formats.workbench import NOTE, read_note
from workbench.lens.recognition import format_of
from workbench.lens.transports import Lens
from workbench.model.language_model import LanguageModel


@checked(LensError)
def load_lens(path: str | Path, model: LanguageModel) -> Lens:
    """The lens in a folder or file of any known format, on the model's device.

    Args:
        path: where it lies, or the name of a lens that comes with Workbench.
        model: the model that it was fitted to.

    Raises:
        LensError: no lens is there, a file is damaged, or the lens belongs to another model.
    """
    place = Path(path) if Path(path).exists() else _shipped_folder(str(path))
    form = format_of(place)
    lens = form.read(place)
    assert lens.about is not None
    if not lens.fits(model):
        layers = f"{min(lens.about.layers)} to {max(lens.about.layers)}"
        raise LensError(
            f"{place} holds a lens for another model: it reads the layers {layers} of a stream {lens.d_model:,} wide; "
            f"{model.name} has {model.network.n_layers} layers and a stream {model.network.d_model:,} wide."
        )
    form.check(lens, model)
    if not lens.about.model_hash:
        lens.about = dataclasses.replace(lens.about, model_hash=model.hash)
    return lens.to(model.device)


def opened(model: LanguageModel, kind: str | Lens) -> Lens:
    """The lens that a person names: a lens, or the word of a kind, whose kept lens of this model is opened.

    Raises:
        LensError: a lens of another model, an unknown kind, or none of this kind is kept for the model.
    """
    if isinstance(kind, Lens):
        kind.check_model(model)
        return kind
    made = Lens.kind_called(kind)
    return kept(model, made) if made.fitted else made()


def kept(model: LanguageModel, kind: type[Lens]) -> Lens:
    """The lens of a kind that comes with Workbench for this very model.

    Raises:
        LensError: there is none, or there are several.
    """
    found = {}
    for name, folder in shipped("lenses", f"*/{NOTE}").items():
        note = read_note(folder)
        if note["kind"] == kind.kind and model.is_named(note["model_hash"]):
            found[name] = folder
    if not found:
        raise LensError(f"No {kind.kind} lens is kept for {model.name}; {kind.how_to_get()}.")
    if len(found) > 1:
        raise LensError(
            f"Several {kind.kind} lenses are kept for {model.name}: {', '.join(found)}; open one of them with "
            "wb.lens.load_lens and pass it."
        )
    return load_lens(next(iter(found.values())), model)


def _shipped_folder(name: str) -> Path:
    found = shipped("lenses", f"*/{NOTE}")
    if name not in found:
        none = "no lens is kept under a name" if folders("lenses") else missing("lenses")
        others = f"{', '.join(found)} come with Workbench" if found else none
        raise LensError(f"There is no folder {name}; {others}.")
    return found[name]
