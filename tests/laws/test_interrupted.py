"""Interrupted is incomplete: a `cancel` that says True once stops the work, and the same call then does it all.

Every public function with a `cancel` comes under the law by its example in `fuzz_examples.py`, every operation by its
settings. What writes to a folder is called again and must end as if nothing had stopped it.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_examples import FUNCTIONS, METHODS, OBJECTS, World
from savers import POINT, SAVERS, corpus, model, sae, search

import workbench as wb
from workbench.harvest import Harvest, Store
from workbench.surgery.registry import OPERATIONS, Cancelled

pytestmark = pytest.mark.usefixtures("tiny_cache")

PARTIAL = {
    "differences.compare_models": "what was compared until then, and a note that it was stopped",
    "attribution.attribute": "the graph of the latents traced so far",
    "measures.measure_fidelities": "measures of the tokens until then",
    "measures.measure_fidelity": "measures of the tokens until then",
    "dictionaries.load_dictionary": "a folder takes no time; downloads stop in tests/dictionaries/test_hub.py",
    "dictionaries.load_set": "as `load_dictionary`",
    "lens.fit_jacobian_lens": "the lens of the texts until then, and a checkpoint; below",
    "steering.search_direction": "the trials until then; a checkpoint goes on, below",
    "training.train": "what was learned until then, and a checkpoint; below",
    "training.fine_tune": "what was learned until then, and a checkpoint; below",
    "lens.fit_tuned_lens": "what was learned until then, and a checkpoint; below",
    "surgery.heal": "what was learned until then",
    "surgery.swap_activation": "ReLU is a value of the configuration: it takes no time and never asks",
    "sparsity.neuron_activity": "the activity on the tokens until then",
    "Harvest.run": "an iteration that ends",
    "Harvest.collect": "the batches until then",
    "Store.write": "an incomplete store; below",
}
"""Functions that return a part, as their documentation says, and the part; and one whose example never asks."""
LONG: dict[str, Callable[[Path, Any], Any]] = {
    "search": lambda path, cancel: search(path, 1, cancel=cancel),
    "training": lambda path, cancel: wb.train(
        sae(0),
        model(),
        POINT,
        corpus(),
        folder=path,
        tokens=96,
        batch_size=32,
        context=16,
        block=64,
        checkpoint_every=0.0,
        seed=1,
        cancel=cancel,
    ),
    "fine-tune": lambda path, cancel: wb.training.fine_tune(
        model(),
        corpus(),
        {POINT: wb.Codebook(32, 8, hook_point=POINT, seed=0)},
        folder=path,
        tokens=64,
        batch=2,
        context=16,
        checkpoint_every=0.0,
        seed=1,
        cancel=cancel,
    ),
    "lens sums": lambda path, cancel: wb.lens.fit_jacobian_lens(
        model(),
        corpus(),
        prompts=2,
        context=9,
        skip=2,
        checkpoint=path,
        checkpoint_every=0.0,
        cancel=cancel,
    ),
    "lens training": lambda path, cancel: wb.lens.fit_tuned_lens(
        model(),
        corpus(),
        folder=path,
        tokens=64,
        batch=2,
        context=16,
        start_tokens=32,
        checkpoint_every=0.0,
        seed=1,
        cancel=cancel,
    ),
    "index": lambda path, cancel: wb.build_index(
        model(), sae(1), corpus(), path, context=32, batch=2, commit_every=0.0, cancel=cancel
    ),
    "store": lambda path, cancel: Store.write(
        Harvest(model(), corpus(), POINT, context=16, batch=2, seed=1), path, commit_every=0.0, cancel=cancel
    ),
}
"""The savers that resume, as in `savers.py` with its content 1."""
OTHERWISE = {
    "heal": "it asks for `cancel` as every operation does, and its training is that of `training`",
    "index over another": "the same call as `index`",
    "index of an export": "it is written whole; a second call over the same export finds it there",
}
"""Savers that resume and are not stopped here, with the reason."""


class Once:
    """Says True the n-th time that it is asked, and never again."""

    def __init__(self, number: int):
        self.number, self.asked = number, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.number


@pytest.fixture(scope="module")
def world(_tiny_cache: Path, zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("interrupted")
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        patch.chdir(folder)
        yield World(zoo["llama"], folder)


def takes_cancel(key: str, world: World) -> Any:
    """The function of an example, if it can be cancelled."""
    first, name = key.split(".")
    if key in METHODS:
        function = getattr(OBJECTS[first](world), name)
    else:
        function = getattr(wb if first == "wb" else getattr(wb, first), name)
    return function if "cancel" in inspect.signature(function).parameters else None


def test_every_function_that_can_be_cancelled_stops(world: World) -> None:
    stopped, went_on = [], []
    for key, example in {**FUNCTIONS, **METHODS}.items():
        function = takes_cancel(key, world)
        if function is None or key in PARTIAL:
            continue
        cancel = Once(1)
        try:
            function(**example(world) | {"cancel": cancel})
        except wb.WorkbenchError as error:
            (stopped if re.search("stopped|cancelled", str(error)) else went_on).append(f"{key}: {error}")
        else:
            went_on.append(f"{key}, asked {cancel.asked} times")
    assert not went_on
    assert len(stopped) > 15


def check_stops(operation: str, llama: wb.model.LanguageModel, folder: Path) -> None:
    """The law: an operation stops where it is told to, or never asks."""
    from test_operation_laws import settings

    llama.network.module.save_pretrained(folder / "checkpoint")
    cancel = Once(1)
    chosen = next(settings(OPERATIONS[operation], folder / "checkpoint"))
    try:
        child = wb.surgery.apply_operation(llama, operation, cancel=cancel, **chosen)
    except Cancelled:
        assert cancel.asked == 1, "it was asked again after it had said True"
        return
    assert operation == "heal" or cancel.asked == 0
    assert operation != "heal" or child.history[-1]["done"] == 0


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_stops_or_never_asks(operation: str, llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    check_stops(operation, llama, tmp_path)


@pytest.mark.parametrize("name", LONG)
def test_long_work_that_was_stopped_once_goes_on(name: str, tmp_path: Path) -> None:
    saver = next(one for one in SAVERS if one.name == name)
    never = Once(0)
    LONG[name](tmp_path / "whole", never)
    whole = saver.read(tmp_path / "whole")
    saver.save(tmp_path / "saver", 1)
    assert whole == saver.read(tmp_path / "saver") is not None
    last = never.asked
    assert last > 1
    for number in sorted({1, 2, 3, last // 2} - {0}):
        path = tmp_path / str(number)
        with contextlib.suppress(wb.WorkbenchError):
            LONG[name](path, Once(number))
        stump = saver.read(path)
        assert stump != whole, f"stopped at the question {number} of {last}, it holds everything"
        LONG[name](path, None)
        assert saver.read(path) == whole, f"stopped at the question {number} of {last}"


def test_everything_that_resumes_is_here() -> None:
    assert {one.name for one in SAVERS if one.resumes} == {*LONG, *OTHERWISE}
