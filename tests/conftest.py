"""Shared models: tiny ones with random weights and a tiny tokenizer, and the default model as it is.

Tiny models keep what they write in a folder of their own; the default model's converted weights are shared by all runs.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from schedule import pytest_addoption, pytest_collection_modifyitems, pytest_runtest_logreport, pytest_terminal_summary  # noqa: F401
from torch import nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.cache import cache_folder
from workbench.model.default_model import GGUF_SHA256

HERE = Path(__file__).parent
ROOMS = [str(path) for path in sorted(HERE.iterdir()) if path.is_dir() and path.name[0] not in "._"]
sys.path += [room for room in ROOMS if room not in sys.path]
os.environ["TQDM_DISABLE"] = "1"  # no bars in the output of tests, nor of the processes that they start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), *ROOMS, os.environ.get("PYTHONPATH")]))
"""Tests share helpers over rooms, and so do the processes that they start."""


@pytest.fixture(scope="module", autouse=True)
def _passed_over_by_the_garbage_collector() -> None:
    """What is alive before a file's tests is imported or shared: it stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()


USERS_CACHE = str(cache_folder())
"""Where the default model is, whatever cache a test has when it first asks for the model."""


@pytest.fixture(scope="session")
def model() -> wb.model.LanguageModel:
    """The default model, from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", USERS_CACHE)
        return wb.load_model()


@pytest.fixture(scope="session")
def default_folder(model: wb.model.LanguageModel) -> Path:
    """The folder of the default model in the user's cache."""
    return Path(USERS_CACHE) / "models" / GGUF_SHA256


@pytest.fixture(scope="session")
def plain_default(default_folder: Path) -> nn.Module:
    """The default model as Hugging Face loads it, without Workbench."""
    return AutoModelForCausalLM.from_pretrained(default_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def _tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of this test run: what one has probed, the others read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_cache(_tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that the tests on tiny models share."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
    return _tiny_cache


class Zoo:
    """Tiny models by architecture, each opened once."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.opened: dict[str, wb.model.LanguageModel] = {}

    def __getitem__(self, name: str) -> wb.model.LanguageModel:
        if name not in self.opened:
            before = os.environ.get("WORKBENCH_CACHE")
            os.environ["WORKBENCH_CACHE"] = str(self.cache)
            try:
                self.opened[name] = wb.load_model(tiny.build(name), tokenizer=tiny.tokenizer())
            finally:
                if before is None:
                    del os.environ["WORKBENCH_CACHE"]
                else:
                    os.environ["WORKBENCH_CACHE"] = before
        return self.opened[name]


@pytest.fixture(scope="session")
def zoo(_tiny_cache: Path) -> Zoo:
    """`zoo["gpt2"]`: a tiny model of this architecture under Workbench; `tiny.build("gpt2")` makes the same weights."""
    return Zoo(_tiny_cache)


@pytest.fixture(scope="session")
def llama(zoo: Zoo) -> wb.model.LanguageModel:
    """The tiny model used where the architecture does not matter."""
    return zoo["llama"]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """No test may leave interventions or gradients' settings in force."""
    yield
    from workbench.model.edits import current_run
    from workbench.model.in_force import InForce, in_force

    assert current_run() is None
    assert in_force() == InForce()
    assert torch.is_grad_enabled()
