"""What several laws stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerator import emulated
from fuzz_examples import World

import workbench as wb


@pytest.fixture(scope="module")
def world(_tiny_cache: Path, zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What valid calls of the fuzz need, in a folder of its own."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("fuzz")
    patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.chdir(folder)
    yield World(zoo["llama"], folder)
    patch.undo()


@pytest.fixture(scope="session")
def pair(_tiny_cache: Path) -> tuple[Any, Any]:
    """One model on the processor and on the emulated accelerator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        here = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
        with emulated() as device:
            return here, wb.load_model(tiny.build("llama").to(device), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Forks have one thread, and sums are added in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
