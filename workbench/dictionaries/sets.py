"""`load_set`: several dictionaries from one place, such as transcoders of all layers."""

from __future__ import annotations

from pathlib import Path

import torch

from workbench.core.checks import checked
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.loading import load_dictionary, local
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.recognition import parts_of
from workbench.model.grad_mode import lasting


@checked(DictionaryError)
@lasting
def load_set(path: str | Path, *, device: str | torch.device | None = None) -> list[Dictionary]:
    """Open all dictionaries of a folder, in the order of the layers: `wb.attribute(model, load_set(path), prompt)`.

    Weights in float32 stay in their files until they are used, as in `load_dictionary`.

    Args:
        path: a set of transcoders, a run with a folder for each hook point, or a single dictionary.
        device: where their tensors go, as in `load_dictionary`.

    Returns:
        The dictionaries, at least one.

    Raises:
        DictionaryError: there is none, a layer is missing, or one of them can't be opened.
    """
    return [load_dictionary(part, device=device) for part in parts_of(local(path))]
