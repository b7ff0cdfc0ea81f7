"""Every public function on a model of another device gives what it gives on the processor.

The device is emulated (`tests/accelerator.py`): it raises where tensors of two devices meet, as a graphics card does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerator
import pytest
import torch
from accelerator import emulated
from fuzz_examples import POINT, World
from public_calls import CALLS, QUICK, called, differences, plain

import workbench as wb

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
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
