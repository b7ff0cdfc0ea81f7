"""The types of the values in a checkpoint's files, from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from workbench.core.forms import read_json
from workbench.core.hashing import combined, values_digest
from workbench.model.checkpoint_files import INDEX, WeightIndex
from workbench.model.weights import ModelError, check_finite, state_of

FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of floats that safetensors names; those of 8 bits are equal to values of bfloat16."""
SINGLE = INDEX.removesuffix(".index.json")
"""The file of weights that are not in shards."""


def stored_values(source: str, named: str | None = None, **where: Any) -> Counter[torch.dtype]:
    """How many floats of each type the weights of a checkpoint are.

    Args:
        source: a folder, or a name on Hugging Face, whose weights are fetched if they are not on this machine.
        named: the file of its weights, or the index of such files, that its configuration names.
        where: as for `from_pretrained`.
    """
    values: Counter[torch.dtype] = Counter()
    for file in _files(source, named, where):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(name)
                kind = part.get_dtype()
                if kind in FLOATS or kind.startswith("F8"):
                    values[FLOATS.get(kind, torch.bfloat16)] += prod(part.get_shape())
    return values


def own_type(values: Mapping[torch.dtype, int]) -> torch.dtype:
    """The type of most values; float32 where there are none."""
    return max(values, key=lambda kind: values[kind], default=torch.float32)


def exact_type(values: Mapping[torch.dtype, int]) -> torch.dtype:
    """The smallest type that rounds no value, and float32 for those of 64 bits."""
    kinds = [kind for kind, number in values.items() if number]
    return kinds[0] if len(kinds) == 1 and kinds[0] != torch.float64 else torch.float32


def mixed_identity(module: nn.Module, source: str, named: str | None = None, **where: Any) -> str:
    """The `identity` of a checkpoint's values, of which a model in 16 bits has rounded some; empty where it is unclear.

    A checkpoint may keep a few tensors in a wider type, such as norms. Those are read from its files one by one, so
    that the model is not built in the wider type. It is unclear where one of them has another name in the model.

    Args:
        module: the model as it was opened in 16 bits.
        source: as for `stored_values`.
        named: as there.
        where: as there.

    Raises:
        ModelError: a value that is no finite number.
    """
    tensors = state_of(module)
    digests: dict[str, bytes] = {}
    for file in _files(source, named, where):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                word, held = opened.get_slice(name).get_dtype(), tensors.get(name)
                if FLOATS.get(word) == (module.dtype if held is None else held.dtype):
                    continue  # it is not rounded
                stored = opened.get_tensor(name)
                if not stored.is_floating_point() and not word.startswith("F8"):
                    continue
                if held is None or held.shape != stored.shape or not torch.equal(stored.to(held.dtype), held):
                    return ""
                check_finite({name: stored}, [])
                digests[name] = values_digest(name, stored.float())
    return combined({name: digests.get(name) or values_digest(name, one) for name, one in tensors.items()})


def _files(source: str, named: str | None, where: Mapping[str, Any]) -> list[Path]:
    """The files of weights that transformers would read; all files of weights of a folder whose names say nothing."""
    from transformers.utils.hub import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False}

    def find(name: str) -> Path | None:
        if Path(source).is_dir():
            return Path(source) / name if (Path(source) / name).is_file() else None
        found = cached_file(source, name, **quiet, **where)
        return None if found is None else Path(found)

    for name in [named] if named else [SINGLE, INDEX]:
        if file := find(name):
            shards = [file] if file.suffix == ".safetensors" else [find(one) for one in _shards(file)]
            return [one for one in shards if one is not None]
    return sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []


def _shards(index: Path) -> list[str]:
    return sorted({*read_json(index, WeightIndex, ModelError, "an index of weights")["weight_map"].values()})
