"""Every public function on a model of another device gives what it gives on the processor.

The device is emulated (`tests/accelerator.py`): it raises where tensors of two devices meet, as a graphics card does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import numbers
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerator
import numpy as np
import pytest
import torch
from accelerator import emulated
from fuzz_examples import FUNCTIONS, METHODS, POINT, World
from test_fuzz_arguments import REFUSED, SLOW, callable_of

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
QUICK = [key for key in CALLS if key not in SLOW and "search" not in key and "sparsities" not in key]
SAMPLE = CALLS if WHOLE else sorted(random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(QUICK, 24))
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def worlds(
    pair: tuple[Any, Any], _tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, World]]:
    """What the calls need, on the processor and on the device."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    folders = [tmp_path_factory.mktemp(name) for name in ("here", "there")]
    patch.chdir(folders[0])
    here, there = (World(model, folder) for model, folder in zip(pair, folders, strict=True))
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


@pytest.mark.parametrize("key", SAMPLE)
def test_a_call_gives_the_same_on_a_device(key: str, worlds: tuple[World, World]) -> None:
    here, there = worlds
    wanted = called(key, here)
    with emulated():
        found = called(key, there)
    assert list(differences(wanted, found)) == []


EDITS = [wb.Clamp("neurons.1.post:3", 3.0), wb.Scale("neurons.0.gate:5", 2.0, positions=(1, 4))]
DRAWN = wb.model.Sampling(1.0, top_k=40, top_p=0.9, seed=3, repetition_penalty=1.3, min_new_tokens=3, stop=["zebra"])


def written(model: wb.model.LanguageModel, edits: list[Any]) -> Any:
    """Texts of a batch, drawn with penalties, streamed, and of a chat through a dictionary of the processor."""
    how: dict[str, Any] = {"interventions": edits, "stop": False}
    batch = model.generate_batch(["The dog", "The cat and the mouse"], 6, **how)
    drawn = model.generate("The dog", 6, sampling=DRAWN, **how)
    streamed = list(model.stream("The dog", 6, sampling=DRAWN, **how))
    with model.spliced({POINT: wb.TopKSAE(32, 24, 4)}):
        chat = model.chat("What is it?", 6, **how)
    return [one.tokens for one in (*batch, drawn, chat)], [drawn.logprobs, chat.logprobs], streamed


def test_texts_under_edits_are_the_same_on_a_device(pair: tuple[Any, Any]) -> None:
    wanted = plain(written(pair[0], EDITS))
    with emulated():
        assert list(differences(wanted, plain(written(pair[1], EDITS)))) == []


def test_nothing_moves_to_a_device_at_each_step_for_an_edit(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an edit holds moves once, at the first of the steps."""
    sae = wb.TopKSAE(32, 24, 4, hook_point=POINT)
    edits = [EDITS[0], wb.Clamp(sae.feature(1), 2.0), wb.Steer.along(POINT, [0.1] * 32)]
    moved: list[Any] = []
    carry_out = accelerator.carry_out

    def counting(func: Any, args: tuple, kwargs: dict) -> Any:
        made = carry_out(func, args, kwargs)
        if func._schema.name in accelerator.MOVES and isinstance(made, accelerator.OnDevice):
            moved.extend(one for one in args if isinstance(one, torch.Tensor) and one.device != made.device)
        return made

    with emulated() as device:
        model = pair[1]
        model.generate("The dog", 3, interventions=edits, stop=False)
        assert sae.W_dec.device == device
        monkeypatch.setattr(accelerator, "carry_out", counting)
        counts = []
        for steps, some in ((2, edits), (5, edits), (2, []), (5, [])):
            moved.clear()
            model.generate("The dog", steps, interventions=some, stop=False)
            counts.append(len(moved))
    assert counts[1] - counts[0] == counts[3] - counts[2]


def test_devices_do_not_mix() -> None:
    """The emulation raises where a card does; else the law above would show nothing."""
    with emulated() as device, pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=device) + torch.ones(2)
    with emulated() as device, pytest.raises(TypeError, match="numpy"):
        torch.ones(2, device=device).numpy()
