"""Fine-tuned models in folders: their tensors by the names that the base has for them, and their configuration."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.core.forms import read_json
from workbench.core.paths import check_links
from workbench.core.type_words import reason_of
from workbench.interventions.opening import NOTE as SPLICED
from workbench.model.language_model import LanguageModel
from workbench.model.reading import read_config, read_module
from workbench.model.weights import ModelError, parameters_of, state_of
from workbench.surgery.child_building import SurgeryError


def model_folder(folder: Path) -> Path:
    """The folder of the checkpoint itself, of one that may hold it beside dictionaries."""
    return folder / "model" if (folder / SPLICED).exists() else folder


def tensors_of_folder(base: LanguageModel, folder: Path) -> dict[str, Tensor] | FolderTensors:
    """The tensors of a fine-tuned folder by the names that the base has for them.

    Files may name tensors otherwise than the model, hold some that it makes itself, or hold several as one;
    transformers knows these forms and opens them.

    Raises:
        SurgeryError: no weights, files that can't be read, or a folder that transformers can't open.
    """
    folder = model_folder(folder)
    found = FolderTensors(folder)
    state, shapes = state_of(base.network.module), found.shapes()
    extra = [name for name in shapes if name not in state]
    alike = all(name in shapes for name in state) and all(is_second_name(base, found, name) for name in extra)
    if alike or not (folder / "config.json").exists():
        return found
    try:
        return state_of(read_module(folder))
    except ModelError as error:
        raise SurgeryError(str(error)) from error


def is_second_name(base: LanguageModel, tensors: dict[str, Tensor] | FolderTensors, name: str) -> bool:
    """Whether a tensor of a folder is a parameter of the base under another of its names, and has its value."""
    state = base.network.module.state_dict()
    if name not in state:
        return False
    at = state[name].data_ptr()
    twins = [one for one, tensor in parameters_of(base.network.module).items() if tensor.data_ptr() == at]
    held = tensors.shapes() if isinstance(tensors, FolderTensors) else tensors
    return bool(twins) and twins[0] in held and torch.equal(tensors[name], tensors[twins[0]])


def configuration_of(folder: Path) -> dict[str, Any]:
    """The configuration in a folder as transformers understands it, whatever version wrote it.

    Raises:
        SurgeryError: it is no configuration that transformers knows.
    """
    read_json(folder / "config.json", dict[str, Any], SurgeryError, "a model's configuration")
    try:
        return read_config(folder, local_files_only=True).to_dict()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SurgeryError(f"The configuration in {folder} can't be understood: {reason_of(error)}.") from error


class FolderTensors:
    """The tensors of a checkpoint's folder, each read on access.

    Every access opens the file anew, so that the pages of earlier tensors don't stay in memory.
    """

    def __init__(self, folder: Path):
        check_links(folder, SurgeryError)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise SurgeryError(f"{folder} holds no weights in safetensors files; give the folder of a checkpoint.")
        self._at: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with _opened(file) as inside:
                for name in inside.keys():  # noqa: SIM118, it is no dictionary
                    self._at[name], self._shapes[name] = file, tuple(inside.get_slice(name).get_shape())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor."""
        return self._shapes

    def __getitem__(self, name: str) -> Tensor:
        with _opened(self._at[name]) as inside:
            return inside.get_tensor(name).clone()


def _opened(file: Path) -> AbstractContextManager[Any]:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SurgeryError(f"{file} can't be read ({error}); copy it again.") from error
