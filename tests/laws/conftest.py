"""What several laws stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_examples import World


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Forks have one thread, and sums are added in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
