"""Directions read from files: control vectors as GGUF, steering-vectors' and lm-eval's `.pt`, and our safetensors.

Sources: repeng 0.4.0, `ControlVector.export_gguf`, and llama.cpp, `src/llama-adapter.cpp`: `direction.N` is added to
what block N, counted from 0, writes into the residual stream. steering-vectors 0.12.2, `SteeringVector`: by layer, at
the output of a module of the layer. lm-eval 0.4.13, `models/hf_steered.py`: by module, at its output, times a
coefficient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.forms import parse_json
from workbench.core.hashing import fingerprint
from workbench.core.paths import check_ordinary
from workbench.core.steady import read_steadily
from workbench.core.torch_files import read_torch
from workbench.core.type_words import reason_of, shown
from workbench.dictionaries.module_names import hook_points_of
from workbench.directions.errors import DirectionError
from workbench.model.gguf_header import StoredTensor, read_header
from workbench.model.weights import ModelError

ARCHITECTURE, OURS = "controlvector", "workbench"
FLOATS = {0: "<f4", 1: "<f2", 28: "<f8"}
"""Types of ggml that are plain numbers, as NumPy calls them."""
LAYER_TYPES = {"decoder_block": "", "mlp": ".mlp", "self_attn": ".self_attn"}
"""steering-vectors' words for modules of a layer whose output is a hook point of every architecture."""


Read = tuple[dict[str, Tensor], dict[str, Any]]
"""Vectors by hook point, and the other arguments of `Direction`."""


class SavedNote(TypedDict):
    """What our files say beside the vectors."""

    format: Literal[1]
    name: str
    model_name: str
    provenance: dict[str, Any]
    sha256: str
    hook_points: NotRequired[list[str]]


def read_direction(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Vectors by hook point in the order of the layers, and the other arguments of `Direction`.

    Raises:
        DirectionError: as in `load_direction`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DirectionError(f"A direction is a file .gguf, .safetensors or .pt, not {shown(path.name)}.")
    check_ordinary(path, DirectionError)
    if not path.is_file():
        raise DirectionError(f"There is no file {path}.")
    try:
        vectors, about = read_steadily(lambda: reader(path), (path,), DirectionError)
    except ModelError as error:
        raise DirectionError(str(error)) from error
    except OSError as error:
        raise DirectionError(f"{path} can't be read: {reason_of(error)}.") from error
    if not vectors:
        raise DirectionError(f"{path} holds no vector.")
    return vectors, about


def _read_note(text: str, vectors: Mapping[str, Tensor], path: Path) -> Read:
    """Vectors in the order in which they were saved, and the other arguments of `Direction`."""
    note = parse_json(text, SavedNote, DirectionError, f"{path} is no direction that was saved here")
    order = note.get("hook_points", [])
    if {*order} != vectors.keys() or fingerprint({**vectors}) != note["sha256"]:
        raise DirectionError(f"{path} was altered after it was saved; copy it again.")
    about = {"name": note["name"], "model_name": note["model_name"], "provenance": note["provenance"]}
    return {point: vectors[point] for point in order}, about


def _from_gguf(path: Path) -> Read:
    header = read_header(path)
    if header.architecture != ARCHITECTURE:
        raise DirectionError(f"{path} holds {shown(header.architecture)}, not a control vector ({ARCHITECTURE}).")
    vectors: dict[int, Tensor] = {}
    for name, stored in header.tensors.items():
        match = re.fullmatch(r"direction\.(\d{1,6})", name)
        if match is None or len(stored.shape) != 1 or int(match[1]) in vectors:
            raise DirectionError(f"{path} holds {shown(name)} {list(stored.shape)}, which no control vector has.")
        vectors[int(match[1])] = _numbers(stored)
    by_point = {f"blocks.{layer}.hook_resid_post": vectors[layer] for layer in sorted(vectors)}
    if note := header.fields.get(f"{OURS}.direction"):
        return _read_note(str(note), by_point, path)
    kind = header.text(f"{ARCHITECTURE}.model_hint", "")
    return by_point, {"name": path.stem, "provenance": {"format": "control vector", "model_type": kind}}


def _numbers(stored: StoredTensor) -> Tensor:
    """The numbers of a tensor, as float32."""
    if stored.form not in FLOATS:
        raise DirectionError(f"{stored.file} holds {shown(stored.name)} in a packed type; export it as float32.")
    with open(stored.file, "rb") as file:
        file.seek(stored.offset)
        raw = file.read(stored.size)
    return torch.from_numpy(np.frombuffer(raw, FLOATS[stored.form]).astype(np.float32))


def _from_safetensors(path: Path) -> Read:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DirectionError(f"{path} is damaged or cut short ({reason_of(error)}); copy it again.") from error
    if OURS not in metadata:
        raise DirectionError(f"{path} says of no tensor where it belongs, so it is no direction that was saved here.")
    return _read_note(metadata[OURS], vectors, path)


def _from_torch(path: Path) -> Read:
    try:
        content = read_torch(path, DirectionError, "it")
        if isinstance(content, Mapping) and content and all(map(_is_steering, content.values())):
            vectors, source = _of_lm_eval(content), "lm-eval"
        elif isinstance(content, Mapping) and {*content} == {"layer_activations", "layer_type"}:
            vectors, source = _of_steering_vectors(content), "steering-vectors"
        else:
            raise DirectionError(
                "it is neither lm-eval's (a steering_vector and an action for each module) nor the plain content of "
                "steering-vectors (layer_activations and layer_type)"
            )
        return vectors, {"name": path.stem, "provenance": {"format": source}}
    except DirectionError as error:
        raise DirectionError(f"{path} can't be read as a direction: {str(error).rstrip('.')}.") from error


def _is_steering(entry: Any) -> bool:
    return isinstance(entry, Mapping) and {"steering_vector", "action"} <= entry.keys()


def _of_lm_eval(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    vectors: dict[str, Tensor] = {}
    for module, entry in content.items():
        odd = entry.keys() - {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}
        if odd:
            raise DirectionError(f"{shown(module)} has {shown(min(map(str, odd)))}, which lm-eval does not know")
        if entry["action"] != "add" or entry.get("bias") is not None or entry.get("head_index") is not None:
            raise DirectionError(
                f"at {shown(module)} it does not add a vector to the whole activation (action {shown(entry['action'])}"
                ", or a bias or a single head); clamp a feature with wb.Clamp"
            )
        factor = entry.get("steering_coefficient", 1.0)
        if isinstance(factor, Tensor) and factor.numel() == 1:
            factor = factor.item()
        if type(factor) not in (int, float):
            raise DirectionError(f"the coefficient of {shown(module)} is no number")
        if (point := _output_of(module)) in vectors:
            raise DirectionError(f"two of its modules are at {point}")
        vectors[point] = _vector(entry["steering_vector"], module) * factor
    return vectors


def _of_steering_vectors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    kind, layers = content["layer_type"], content["layer_activations"]
    if not isinstance(kind, str) or kind not in LAYER_TYPES:
        raise DirectionError(
            f"it acts at the layer type {shown(kind)}, whose place differs between architectures; Workbench reads "
            f"{', '.join(LAYER_TYPES)}"
        )
    if not isinstance(layers, Mapping) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise DirectionError("its layers are not numbered from 0")
    return {_output_of(f"layers.{one}{LAYER_TYPES[kind]}"): _vector(layers[one], one) for one in sorted(layers)}


def _output_of(module: Any) -> str:
    point = hook_points_of(module)[1] if isinstance(module, str) else ""
    if not point:
        raise DirectionError(f"{shown(module)} is not the name of a block, of its MLP or of its attention")
    return point


def _vector(value: Any, where: Any) -> Tensor:
    wrong = not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim == 0
    if wrong or value.numel() != value.shape[-1]:
        raise DirectionError(f"what it holds for {shown(where)} is no vector")
    return value.detach().float().flatten()


READERS = {".gguf": _from_gguf, ".safetensors": _from_safetensors, ".pt": _from_torch, ".pth": _from_torch}
