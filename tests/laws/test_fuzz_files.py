"""Every file that was altered is refused in one sentence of the package's own, or opens unchanged in meaning.

The files of everything that is saved are altered one way at a time. The suite tries a seeded sample; `make fuzz` tries
all alterations (`WORKBENCH_FUZZ=0`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from fuzz_examples import World
from fuzz_files import KEPT, Kept, alterations, equal
from fuzz_values import short, wrong_sentence

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")

CASES = int(os.environ.get("WORKBENCH_FUZZ", "1000")) // 50
"""Alterations of each kind of thing; 0 for all of them."""
SEED = int(os.environ.get("WORKBENCH_FUZZ_SEED", "0"))
"""Of the sample."""
ROOM = {"child": 6, "model with dictionaries": 8, "fine-tuning": 12, "training": 12, "cached hook points": 4}
"""Of those that take long to open, in the sample of the suite."""


def opened(kept: Kept, world: World, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kept.open(world, folder)


def complaint(kept: Kept, world: World, folder: Path, what: str, before: Any) -> str:
    """What is wrong with the outcome of opening an altered folder; empty where nothing is."""
    try:
        after = opened(kept, world, folder)
    except wb.WorkbenchError as error:
        wrong = wrong_sentence(error)
        return f"{what}: {wrong}: {short(str(error))}" if wrong else ""
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{what}: {type(error).__name__}: {short(str(error))}"
    free = kept.free and re.search(kept.free, what)
    return "" if free or equal(before, after) else f"{what}: it opened, and means something else"


@pytest.mark.parametrize("name", KEPT)
def test_altered_files_are_refused_or_mean_the_same(name: str, world: World, tmp_path: Path) -> None:
    kept = KEPT[name]
    valid, folder = tmp_path / "valid", tmp_path / "altered"
    valid.mkdir()
    kept.write(world, valid)
    shutil.copytree(valid, folder)
    before = opened(kept, world, folder)
    every = list(alterations(valid))
    most = min(ROOM.get(name, CASES), CASES) if CASES else len(every)
    chosen = random.Random(f"{SEED} {name}").sample(every, min(most, len(every)))
    wrong = []
    for what, act in chosen:
        shutil.rmtree(folder)
        shutil.copytree(valid, folder)
        act(folder)
        if words := complaint(kept, world, folder, what, before):
            wrong.append(words)
    if path := os.environ.get("WORKBENCH_FUZZ_REPORT"):
        with open(f"{path}.files", "a", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{name}: {words}\n" for words in wrong)
    assert not wrong, f"{len(wrong)} of {len(chosen)} alterations:\n" + "\n".join(wrong[:40])
