"""What is computed in float64 is right on a device that has no float64, such as MPS.

The device is emulated (`NO_FLOAT64` of `tests/accelerator.py`): it refuses every tensor of float64.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerator import NO_FLOAT64, emulated
from fuzz_examples import World
from intervention_laws import cases, logits
from public_calls import CALLS, QUICK, called, differences, plain
from test_operation_laws import CORPUS, TOKENS, settings, tuned

import workbench as wb
from workbench.interventions import INTERVENTIONS
from workbench.surgery.registry import OPERATIONS, apply_operation

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
CHANCE = random.Random(int(os.environ.get("WORKBENCH_SEED", "0")) + 3)
SAMPLE = CALLS if WHOLE else sorted({"wb.bake", *CHANCE.sample(QUICK, 5)})
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
    with emulated():
        there = wb.load_model(tiny.build("llama").to(NO_FLOAT64), tokenizer=tiny.tokenizer())
    yield World(pair[0], folders[0]), World(there, folders[1])
    patch.undo()


@pytest.mark.parametrize("key", SAMPLE)
def test_a_call_gives_the_same_without_float64(key: str, worlds: tuple[World, World]) -> None:
    here, there = worlds
    wanted = called(key, here)
    with emulated():
        found = called(key, there)
    assert list(differences(wanted, found)) == []


@pytest.mark.parametrize("name", sorted(INTERVENTIONS) if WHOLE else ["ablatedirection"])
def test_an_intervention_is_the_same_without_float64(name: str, worlds: tuple[World, World]) -> None:
    here, there = (world.model for world in worlds)
    kind = INTERVENTIONS[name]
    wanted = [logits(here, [one]) for one in cases(here, kind)]
    with emulated():
        found = [logits(there, [one]) for one in cases(there, kind)]
        assert all(one.device == NO_FLOAT64 for one in found)
        found = [one.cpu() for one in found]
    assert list(differences(plain(wanted), plain(found))) == []


@pytest.mark.parametrize("operation", sorted(OPERATIONS) if WHOLE else [])
def test_an_operation_is_the_same_without_float64(operation: str, worlds: tuple[World, World], tmp_path: Path) -> None:
    here, there = (world.model for world in worlds)
    tuned(here, tmp_path / "tuned")

    def operate(model: Any) -> Any:
        every = list(settings(OPERATIONS[operation], tmp_path / "tuned"))
        child = apply_operation(model, operation, **every[-1])
        assert child.model.device == model.device
        return plain([child.model(TOKENS), child.model.hash, child.certify(CORPUS, 60, context=16)])

    wanted = operate(here)
    with emulated():
        found = operate(there)
    assert list(differences(wanted, found)) == []


def test_the_device_has_no_float64() -> None:
    """Else the laws above would show nothing."""
    with emulated(), pytest.raises(TypeError, match="does not support"):
        torch.ones(2, device=NO_FLOAT64).double()
    with emulated(), pytest.raises(TypeError, match="does not support"):
        torch.zeros(2, dtype=torch.float64, device=NO_FLOAT64)
