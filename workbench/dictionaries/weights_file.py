"""Weights of other tools' dictionaries in safetensors files: read, and checked against the shapes they must have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.core.hashing import HALVES
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.foreign import mapped_safetensors


def read_weights(path: Path, packed: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped, every value looked at once; those in 16 bits become float32 in memory.

    Args:
        path: the file.
        packed: names of those that stay in 16 bits.

    Raises:
        DictionaryError: the file is damaged, or a tensor holds no floating-point numbers or values that are not finite.
    """
    return as_single(mapped_safetensors(path, f"its {path.name}"), path.name, packed)


def as_single(tensors: Mapping[str, Tensor], file: str, packed: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of floating-point numbers, those in 16 bits as float32 unless they are `packed`."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DictionaryError(f"{shown(name)} in its {file} holds {tensor.dtype}, not floating-point numbers")
    return {
        name: one.detach().float() if one.dtype in HALVES and name not in packed else one.detach()
        for name, one in tensors.items()
    }


def names_in(path: Path) -> frozenset[str]:
    """The names of the tensors of a safetensors file; none where it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError, ValueError):
        return frozenset()


def check_names(tensors: Mapping[str, Tensor], file: str, expected: set[str], optional: frozenset[str]) -> None:
    """Raise `DictionaryError` unless tensors have all expected names, and beside these optional ones only."""
    for name in sorted(expected - tensors.keys()):
        raise DictionaryError(f"its {file} lacks {name}")
    for name in sorted(tensors.keys() - expected - optional):
        raise DictionaryError(f"its {file} has {shown(name)}, which such a dictionary does not have")


def check_shapes(tensors: Mapping[str, Tensor], file: str, shapes: Mapping[str, tuple[int, ...]], by: str) -> None:
    """Raise `DictionaryError` unless tensors have the shapes that another tensor or a field implies.

    Args:
        tensors: the tensors of the file.
        file: its name.
        shapes: the shape of each that is looked at; those that are not there are passed over.
        by: what implies them, such as "d_in = 8 in its cfg.json".
    """
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise DictionaryError(
                f"{name} in its {file} has the shape {list(tensors[name].shape)}, and {by} means {list(shape)}"
            )


def matrix_of(tensors: Mapping[str, Tensor], name: str, file: str) -> tuple[int, int]:
    """The shape of a tensor that has to be a matrix with rows and columns."""
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise DictionaryError(f"{name} in its {file} has the shape {list(shape)}, and it should be a matrix")
    return shape[0], shape[1]
