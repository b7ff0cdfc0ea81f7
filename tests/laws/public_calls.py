"""Valid calls of every public function, and their results as plain data that two machines' are compared in."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import numbers
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from fuzz_examples import FUNCTIONS, METHODS, World
from test_fuzz_arguments import REFUSED, SLOW, callable_of

import workbench as wb

NO_MODEL = {
    "circuits.greater_than_model": "makes its own model",
    "circuits.induction_model": "makes its own model",
}
"""Functions that take no model, with what they do instead."""
TIMES = ("seconds", "began", "made", "folder", "path", "provenance", "command")
"""Fields that differ from one run to the next."""

CALLS = sorted(key for key in {**FUNCTIONS, **METHODS} if key not in REFUSED and key not in NO_MODEL)
QUICK = [key for key in CALLS if key not in SLOW and "search" not in key and "sparsities" not in key]


def called(key: str, world: World) -> Any:
    """The result of a valid call, in plain data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = callable_of(key, world)(**{**FUNCTIONS, **METHODS}[key](world))
        return plain(list(result) if isinstance(result, Iterator) else result)


def plain(value: Any, depth: int = 4) -> Any:
    """Numbers, texts and tensors of a result, by field; what has none of these is left out."""
    if isinstance(value, wb.dictionaries.Codes):  # in another order on each device
        value = value.dense()
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):  # several lines of JSON, which stay text
            value = json.loads(value)
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value.astype(np.float64)) if value.dtype.kind in "iufb" else value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return value.detach().float().cpu()
    if depth and isinstance(value, Mapping):
        return {str(key): plain(one, depth - 1) for key, one in value.items() if key not in TIMES}
    if depth and isinstance(value, list | tuple):
        return [plain(one, depth - 1) for one in value]
    return value if isinstance(value, numbers.Number | str) else None


def differences(one: Any, other: Any, where: str = "result") -> Iterator[str]:
    """Where two results differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        close = one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
        if not close:
            yield f"{where}: {one} and {other}"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differences(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} items"
        for place, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}[{place}]")
    elif isinstance(one, float) and isinstance(other, float):
        if not math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4) and not (math.isnan(one) and math.isnan(other)):
            yield f"{where}: {one} and {other}"
    elif isinstance(one, str) and isinstance(other, str) and ("/" in one or len(one) == 64):
        return  # a path, or a hash of what holds one
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"
