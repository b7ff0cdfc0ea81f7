"""No input of a megabyte takes more than 200 MB or 10 s to be refused, at any door; `WORKBENCH_TORTURE` opens all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import DOORS, HUGE, LONG, PASSES
from preloaded import Preloaded

TORTURE = bool(os.environ.get("WORKBENCH_TORTURE"))
SECONDS, MEGABYTES = 10.0, 200.0


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """A process in which everything is made that doors need."""
    folder = tmp_path_factory.mktemp("doors")
    with Preloaded(f"import doors\ndoors.prepare({str(folder)!r})") as process:
        yield process


@pytest.mark.parametrize("name", [name for name in DOORS if TORTURE or not LONG.search(name)])
def test_a_door_holds(name: str, ready: Preloaded, tmp_path: Path) -> None:
    done = ready.run(f"import doors\ndoors.measure({name!r})", [], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if path := os.environ.get("WORKBENCH_DOORS_REPORT"):
        with open(path, "a", encoding="utf-8") as file:
            clock, processor = found["seconds"]
            file.write(
                f"{clock:7.2f} s {processor:7.2f} s {found['megabytes']:7.0f} MB  {name}: {found['said'][:160]}\n"
            )
    assert found["kind"] == ("" if name in PASSES else "refused"), found
    assert found["said"] == "" or (
        found["said"][-1] in '.?!"' and "\n" not in found["said"] and len(found["said"]) < 1000
    )
    room = 30 if name in HUGE else 1.5 if name in PASSES else 1
    assert found["seconds"][1] < SECONDS, found  # of the processor, which other work on the machine changes less
    assert found["megabytes"] < MEGABYTES * room, found
