"""`load_set`: several dictionaries from one place, such as transcoders of all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from workbench.core.checks import checked
from workbench.core.progress import Progress
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.loading import located, opened
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import parts_of
from workbench.model.grad_mode import lasting
from workbench.model.placing import chosen_device


@checked(DictionaryError)
@lasting
def load_set(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Dictionary]:
    """Open all dictionaries of a folder, in the order of the layers: `wb.attribute(model, load_set(path), prompt)`.

    Weights in float32 stay in their files until they are used, as in `load_dictionary`.

    Args:
        path: a set of transcoders, a run with a folder for each hook point, or a single dictionary; or the name of one
            on the hub, as in `load_dictionary`.
        device: where their tensors go, as in `load_dictionary`.
        progress: called with the share of a download; None: a bar; False: nothing.
        cancel: asked about ten times a second during a download, which it stops; what was fetched stays in the cache.

    Returns:
        The dictionaries, at least one.

    Raises:
        DictionaryError: there is none, a layer is missing, or one of them can't be opened; or it can't be fetched, or
            `cancel` returned True.
    """
    where = None if device is None else chosen_device(device, DictionaryError)
    place = located(path, several=True, progress=progress, cancel=cancel)
    found = [opened(replace(place, path=part)) for part in parts_of(place.path)]
    return found if where is None or where.type == "cpu" else [one.to(where) for one in found]
