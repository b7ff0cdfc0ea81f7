"""The types of the values in a checkpoint's files, from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from workbench.core.forms import read_json
from workbench.core.hashing import Digest, combined, values_digest
from workbench.core.tensor_files import file_pieces, tensor_places
from workbench.model.checkpoint_files import INDEX, WeightIndex
from workbench.model.weights import ModelError, buffers_of, check_finite, state_of

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

    Those are read from its files in pieces, so that the model is not built in the wider type. It is unclear where one
    of them has another name in the model, but for the prefix that transformers adds to a checkpoint of the layers
    alone, and for a name of a tied tensor.

    Args:
        module: the model as it was opened in 16 bits.
        source: as for `stored_values`.
        named: as there.
        where: as there.

    Raises:
        ModelError: a value that is no finite number.
    """
    tensors, infinite = state_of(module), list(buffers_of(module))
    wider = _wider(module, tensors, _files(source, named, where))
    if wider is None:
        return ""

    def digest(name: str) -> bytes:
        one = tensors[name]
        return _digest_of_file(name, one, wider[name], infinite) if name in wider else values_digest(name, one)

    with ThreadPoolExecutor(2) as pool:  # hashing and reading release the interpreter lock
        digests = dict(zip(tensors, pool.map(digest, tensors), strict=True))
    return combined(digests) if all(digests.values()) else ""


Stored = tuple[Path, tuple[int, int], torch.dtype]
"""The file of a tensor, where its bytes are in it, and their type."""


def _wider(module: Any, tensors: Mapping[str, Tensor], files: list[Path]) -> dict[str, Stored] | None:
    """The tensors that files hold in another type than a model does, by name; None where that is unclear."""
    found: dict[str, Stored] = {}
    seen: set[str] = set()
    tied = module.state_dict().keys() - tensors.keys()
    for file in files:
        places = tensor_places(file, ModelError)
        with safe_open(file, "pt") as opened:
            for stored in opened.keys():  # noqa: SIM118 - it is no mapping
                part = opened.get_slice(stored)
                word, prefixed = part.get_dtype(), f"{module.base_model_prefix}.{stored}"
                kind = FLOATS.get(word) or part[...].dtype
                name = stored if stored in tensors else prefixed
                if name not in tensors:
                    if kind.is_floating_point and kind != module.dtype and not {stored, prefixed} & tied:
                        return None
                    continue
                if name in seen or list(tensors[name].shape) != part.get_shape():
                    return None
                seen.add(name)
                if kind.is_floating_point and kind != tensors[name].dtype:
                    found[name] = file, places[stored], kind
    return found if seen == tensors.keys() else None


def _digest_of_file(name: str, held: Tensor, stored: Stored, infinite: list[str]) -> bytes:
    """The `values_digest` of a tensor of a file, which a model holds in another type; empty where it holds another."""
    file, place, kind = stored
    whole, flat, done = Digest(name, held.shape, torch.float32), held.reshape(-1), 0
    for piece in file_pieces(file, place, ModelError):
        values = piece.view(kind)
        check_finite({name: values.float()}, infinite)
        if not torch.equal(values.to(held.dtype), flat[done : done + len(values)]):
            return b""
        whole.update(values)
        done += len(values)
    return whole.digest()


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
