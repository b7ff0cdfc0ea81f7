"""Directions written to files: control vectors of llama.cpp and repeng as GGUF, and safetensors for any place."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from workbench.core.files import replacing
from workbench.core.hashing import fingerprint
from workbench.core.type_words import shown
from workbench.directions.errors import DirectionError
from workbench.directions.reading import ARCHITECTURE, OURS, read_direction


def write_direction(
    path: Path, vectors: Mapping[str, Tensor], name: str, model_name: str, provenance: Mapping[str, Any]
) -> None:
    """Write vectors by hook point, with what a `Direction` knows of them; errors as in `Direction.save`."""
    kind = path.suffix.lower()
    if kind not in (".gguf", ".safetensors"):
        raise DirectionError(f"A direction is saved as .gguf or .safetensors, not as {shown(path.name)}.")
    vectors = {point: vector.detach().cpu().contiguous() for point, vector in vectors.items()}
    layers = _layers(vectors, name) if kind == ".gguf" else {}
    about = {"format": 1, "name": name, "model_name": model_name, "provenance": dict(provenance)}
    note = json.dumps(about | {"sha256": fingerprint(vectors), "hook_points": [*vectors]})
    if path.is_file():
        try:
            read_direction(path)
        except DirectionError as error:
            raise DirectionError(f"{path} is there and holds no direction, so it is left as it is.") from error
    with replacing(path, DirectionError, owned=path.is_file()) as temporary:
        if kind == ".gguf":
            _to_gguf(temporary, {layer: vectors[point] for point, layer in layers.items()}, note, provenance)
        else:
            save_file(vectors, temporary, {OURS: note})


def _layers(vectors: Mapping[str, Tensor], name: str) -> dict[str, int]:
    """The block of each vector of a control vector."""
    found = {point: re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", point) for point in vectors}
    odd = next((point for point, match in found.items() if match is None), None)
    if odd is not None:
        raise DirectionError(
            f"A control vector is added to outputs of blocks (blocks.3.hook_resid_post), not at {shown(odd)}; save "
            f"{name} as .safetensors."
        )
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise DirectionError(f"The vectors of {name} differ in width; save it as .safetensors.")
    return {point: int(match[1]) for point, match in found.items() if match is not None}


def _to_gguf(path: Path, vectors: Mapping[int, Tensor], note: str, provenance: Mapping[str, Any]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", str(provenance.get("model_type", "")))
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
    writer.add_string(f"{OURS}.direction", note)
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        read_direction(path)
    except DirectionError as error:  # NumPy writes arrays without a word on what the disk did not take
        raise OSError(errno.ENOSPC, "the disk is full, or takes no file of this size") from error
