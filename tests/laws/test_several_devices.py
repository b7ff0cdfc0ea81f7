"""Every public function on a model whose layers lie on two devices gives what it gives on the processor, or refuses.

accelerate places the layers (`device_map`). Both devices are emulated, and raise where their tensors meet.
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
from accelerate import dispatch_model
from accelerator import DEVICE, SECOND, emulated
from fuzz_examples import World
from public_calls import CALLS, QUICK, called, differences
from test_devices import WHOLE

import workbench as wb

SPREAD = "is spread over several devices"
"""How a sentence refuses such a model."""
MAKERS = {"surgery", "wb.bake", "Child", "Certificate", "interventions.load_model"}
"""Rooms, functions and classes that make models, which have one device."""
SAMPLE = CALLS if WHOLE else sorted(random.Random(int(os.environ.get("WORKBENCH_SEED", "0")) + 1).sample(QUICK, 8))
pytestmark = pytest.mark.usefixtures("tiny_cache")


def spread(**changes: Any) -> Any:
    """A tiny Llama whose second layer is on another device than the rest of it."""
    module = tiny.build("llama", **changes)
    names = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    places = dict.fromkeys([*names, "model.layers.0", "model.layers.2"], str(DEVICE)) | {"model.layers.1": str(SECOND)}
    return dispatch_model(module, device_map=places)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def worlds(_tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    folders = [tmp_path_factory.mktemp(name) for name in ("here", "there")]
    patch.chdir(folders[0])
    here = World(wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer()), folders[0])
    with emulated():
        there = World(wb.load_model(spread(), tokenizer=tiny.tokenizer()), folders[1])
    yield here, there
    patch.undo()


def attempt(key: str, world: World) -> tuple[Any, str]:
    """The result of a call, or why it is refused."""
    try:
        return called(key, world), ""
    except wb.WorkbenchError as error:
        return None, str(error)


@pytest.mark.parametrize("key", SAMPLE)
def test_a_call_gives_the_same_on_several_devices(key: str, worlds: tuple[World, World]) -> None:
    here, there = worlds
    wanted = called(key, here)
    with emulated():
        found, refusal = attempt(key, there)
    if refusal:
        assert SPREAD in refusal
        assert {key, key.partition(".")[0]} & MAKERS
    else:
        assert list(differences(wanted, found)) == []


def test_edits_act_on_whatever_device_their_layer_is() -> None:
    edits = [
        wb.Clamp("neurons.1.post:3", 5.0),
        wb.Scale("neurons.2.gate:5", 3.0, positions=(1, 3)),
        wb.Steer.along("blocks.1.hook_out", [0.3] * 32, 1.0, positions="generated"),
    ]
    plain = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    wanted = plain.generate_batch(["The dog", "The cat and the mouse"], 6, interventions=edits, stop=False)
    with emulated():
        model = wb.load_model(spread(), tokenizer=tiny.tokenizer())
        assert {str(one.device) for one in model.network.module.parameters()} == {str(DEVICE), str(SECOND)}
        assert model.hash == plain.hash
        found = model.generate_batch(["The dog", "The cat and the mouse"], 6, interventions=edits, stop=False)
        assert [one.tokens for one in found] == [one.tokens for one in wanted]
        assert model.capture("The dog ran", ["blocks.1.hook_out"])["blocks.1.hook_out"].device == model.device


def test_a_dictionary_acts_on_a_layer_of_another_device() -> None:
    tokens = "The dog ran to"
    results = []
    with emulated():
        for module in (tiny.build("llama"), spread()):
            model = wb.load_model(module, tokenizer=tiny.tokenizer())
            torch.manual_seed(0)
            sae = wb.TopKSAE(32, 64, 4, hook_point="blocks.1.hook_out")
            with model.spliced({"blocks.1.hook_out": sae}), model.intervening([wb.Clamp(sae.feature(3), 2.0)]):
                results.append(model(tokens).cpu())
    assert torch.allclose(*results, atol=1e-4)


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with torch.device("meta"):
        module = tiny.build("llama")
    with pytest.raises(wb.model.ModelError, match="is not in memory"):
        wb.load_model(module, tokenizer=tiny.tokenizer())
