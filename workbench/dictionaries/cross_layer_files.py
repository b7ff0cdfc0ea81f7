"""Cross-layer transcoders from files with the tensors of a layer, which stay in their files and in their types.

Everything but the decoders is looked at once, a few MiB at a time; decoder rows are looked at where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.core.hashing import HALVES
from workbench.core.tensor_files import file_fingerprint
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.protocol import Dictionary

KIND = "cross_layer_transcoder"
TYPES = (*HALVES, torch.float32)


def assembled(layers: Sequence[Mapping[str, Tensor]]) -> Dictionary:
    """A transcoder from the tensors of its layers; without hook points.

    Args:
        layers: for each layer `W_enc` `[latents, d_model]`, `b_enc`, `b_dec`, `W_dec`
            `[latents, layers from this one on, d_model]`; a `threshold`, without which it is 0; and `W_skip`
            `[d_model, d_model]` in all layers or in none.

    Raises:
        DictionaryError: tensors of other shapes, a threshold below 0, or some layers alone with a threshold or a skip
            path.
    """
    tensors: dict[str, Tensor] = {}
    biases, first = [], layers[0]["W_enc"]
    if first.ndim != 2 or not first.numel():
        raise DictionaryError(f"W_enc of layer 0 has the shape {tuple(first.shape)}, and it is of two dimensions")
    width, d = first.shape
    for layer, own in enumerate(layers):
        shapes = {"W_enc": (width, d), "b_enc": (width,), "b_dec": (d,), "threshold": (width,), "W_skip": (d, d)}
        shapes["W_dec"] = (width, len(layers) - layer, d)
        if own.keys() != layers[0].keys():
            name = sorted(own.keys() ^ layers[0].keys())[0]
            raise DictionaryError(
                f"layer {layer if name in own else 0} has a {name}, and layer {0 if name in own else layer} has none"
            )
        for name, tensor in own.items():
            if tuple(tensor.shape) != shapes[name]:
                raise DictionaryError(
                    f"{name}_{layer} has the shape {tuple(tensor.shape)}, and for {len(layers)} layers with W_enc "
                    f"{(width, d)} it is {shapes[name]}"
                )
        threshold = own.get("threshold", torch.zeros(width))
        if bool((threshold < 0).any()):
            raise DictionaryError(f"a threshold of layer {layer} is below 0, so that latents have values below 0")
        tensors |= {f"W_enc_T.{layer}": own["W_enc"], f"b_enc.{layer}": own["b_enc"].float()}
        tensors |= {f"W_dec.{layer}": own["W_dec"], f"activations.{layer}.threshold": threshold.float()}
        tensors |= {f"W_skip.{layer}": own["W_skip"].float()} if "W_skip" in own else {}
        biases.append(own["b_dec"].float())
    tensors["b_dec"] = torch.stack(biases)
    settings = {"layers": len(layers), "skip": "W_skip" in layers[0]}
    stated = {"d_in": d * len(layers), "d_sae": width * len(layers), "workbench": {"settings": settings}}
    made: Any = Dictionary.kind_called(KIND).from_config(stated, tensors)
    made.lazy = made.initialised = True
    return made


def look_at(file: Path, tensors: dict[str, Tensor]) -> None:
    """Look at every value of some tensors of a file; raises `DictionaryError` for one that is not finite."""
    try:
        file_fingerprint(file, tensors, DictionaryError, lambda *one: check_finite(dict([one])))
    except OSError as error:
        raise _damaged(file, error) from error


def mapped(file: Path, needed: Set[str], optional: Set[str] = frozenset()) -> dict[str, Tensor]:
    """The tensors of a file, mapped.

    Raises:
        DictionaryError: the file is missing or damaged, or holds other names, or numbers of another type than floats
            of 16 or 32 bits.
    """
    try:
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(file, error) from error
    for name in sorted(needed - found.keys()) or sorted(found.keys() - needed - optional):
        raise DictionaryError(f"{file.name} {'lacks' if name in needed else 'has an unknown tensor'} {shown(name)}")
    for name, tensor in found.items():
        if tensor.dtype not in TYPES:
            raise DictionaryError(
                f"{name} holds {tensor.dtype}, and weights are floating-point numbers of 16 or 32 bits"
            )
    return found


def _damaged(file: Path, error: Exception) -> DictionaryError:
    if not file.exists():
        return DictionaryError(f"{file.name} is missing; copy that file too")
    return DictionaryError(f"{file.name} is damaged or cut short ({error}); copy it again")
