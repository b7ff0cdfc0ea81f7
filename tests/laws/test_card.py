"""Every public function on a real graphics card gives what it gives on the processor.

    pytest -m accelerator tests/laws/test_card.py

It needs no network. Without a card these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fuzz_examples import World
from public_calls import CALLS, called, differences, plain
from test_devices import EDITS, written

import workbench as wb

CARD = torch.cuda.is_available()
pytestmark = [pytest.mark.accelerator, pytest.mark.skipif(not CARD, reason="no CUDA card")]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, World]]:
    """What the calls need, on the processor and on the card, with a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        folders = [tmp_path_factory.mktemp(name) for name in ("cache", "here", "there")]
        patch.setenv("WORKBENCH_CACHE", str(folders[0]))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folders[1])
        models = [
            wb.load_model(tiny.build("llama"), device=device, tokenizer=tiny.tokenizer()) for device in ("cpu", "cuda")
        ]
        yield World(models[0], folders[1]), World(models[1], folders[2])


@pytest.mark.parametrize("key", CALLS)
def test_a_call_gives_the_same_on_a_card(key: str, cards: tuple[World, World]) -> None:
    assert list(differences(called(key, cards[0]), called(key, cards[1]))) == []


def test_texts_under_edits_are_the_same_on_a_card(cards: tuple[World, World]) -> None:
    one, other = (plain(written(world.model, EDITS)) for world in cards)
    assert list(differences(one, other)) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_on_a_card_are_those_of_the_processor(dtype: str, cards: tuple[World, World], tmp_path: Path) -> None:
    """Within the rounding of the type; an edit that changes nothing changes no bit."""
    module: Any = tiny.build("llama")
    models = [
        wb.load_model(module, device=device, dtype=dtype, tokenizer=tiny.tokenizer()) for device in ("cpu", "cuda")
    ]
    tokens = torch.arange(24).view(2, 12) * 5 % tiny.VOCAB
    one, other = (model(tokens).float().cpu() for model in models)
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert float((one - other).abs().max()) <= 8 * eps * float(one.abs().max())
    with models[1].intervening([wb.Scale("neurons.1.post:3", 1.0)]):
        assert torch.equal(models[1](tokens).float().cpu(), other)
