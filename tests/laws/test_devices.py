"""Every public function on a model of another device gives what it gives on the processor.

The device is emulated (`tests/accelerator.py`): it raises where tensors of two devices meet, as a graphics card does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerator import emulated
from fuzz_examples import FUNCTIONS, METHODS, World
from test_fuzz_arguments import REFUSED, callable_of

import workbench as wb

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
NO_MODEL = {
    "circuits.greater_than_model": "makes its own model",
    "circuits.induction_model": "makes its own model",
}
"""Functions that take no model, with what they do instead."""
TIMES = ("seconds", "began", "made", "folder", "path", "provenance", "command")
"""Fields that differ from one run to the next."""

CALLS = sorted(key for key in {**FUNCTIONS, **METHODS} if key not in REFUSED and key not in NO_MODEL)
SAMPLE = CALLS if WHOLE else sorted(random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(CALLS, 60))
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def worlds(_tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """What the calls need, on the processor and on the device."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    folders = [tmp_path_factory.mktemp(name) for name in ("here", "there")]
    patch.chdir(folders[0])
    here = World(wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer()), folders[0])
    with emulated() as device:
        there = World(wb.load_model(tiny.build("llama").to(device), tokenizer=tiny.tokenizer()), folders[1])
    yield here, there
    patch.undo()


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


@pytest.mark.parametrize("key", SAMPLE)
def test_a_call_gives_the_same_on_a_device(key: str, worlds: tuple[World, World]) -> None:
    here, there = worlds
    wanted = called(key, here)
    with emulated():
        found = called(key, there)
    assert list(differences(wanted, found)) == []


def on_device(act: Callable[[wb.model.LanguageModel], Any]) -> tuple[Any, Any]:
    """What an act gives on the processor and on the device."""
    here = plain(act(wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())))
    with emulated() as device:
        model = wb.load_model(tiny.build("llama").to(device), tokenizer=tiny.tokenizer())
        assert model.device == device
        return here, plain(act(model))


def test_texts_under_edits_are_the_same_on_a_device() -> None:
    edits = [wb.Clamp("neurons.1.post:3", 3.0), wb.Scale("neurons.0.gate:5", 2.0, positions=(1, 4))]

    def write(model: wb.model.LanguageModel) -> Any:
        how: dict[str, Any] = {"interventions": edits, "stop": False}
        batch = model.generate_batch(["The dog", "The cat and the mouse"], 6, **how)
        drawn = model.generate("The dog", 6, temperature=1.0, top_p=0.9, seed=3, **how)
        return [one.tokens for one in (*batch, drawn)], drawn.logprobs

    assert list(differences(*on_device(write))) == []


def test_devices_do_not_mix() -> None:
    """The emulation raises where a card does; else the law above would show nothing."""
    with emulated() as device, pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=device) + torch.ones(2)
    with emulated() as device, pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device=device).numpy()
