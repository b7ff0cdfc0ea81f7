"""Every architecture of the zoo is right or refused, and docs/models.md says which.

The suite runs a seeded sample of the table; `make zoo` runs it whole and writes the page anew.
"""

from __future__ import annotations

import functools
import os
import random
import re
from pathlib import Path

import pytest
import zoo
from capabilities import CAPABILITIES, Subject, outcome

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WHOLE = os.environ.get("WORKBENCH_LAWS") == "all"
SAMPLE = 8
"""Architectures that the suite runs; which, the day of the year says, so that all have their turn."""
ALWAYS = ("llama", "gemma3", "mixtral")


def chosen() -> list[str]:
    """The architectures of this run."""
    if WHOLE:
        return list(zoo.ZOO)
    seed = int(os.environ.get("WORKBENCH_SEED", "0"))
    others = sorted(set(zoo.ZOO) - set(ALWAYS))
    return [*ALWAYS, *random.Random(seed).sample(others, SAMPLE - len(ALWAYS))]


@functools.lru_cache(1)
def subject(name: str) -> Subject:
    """An architecture, opened once for all its capabilities."""
    return Subject(name)


@functools.cache
def sentences() -> dict[str, str]:
    """The page's refusals by number."""
    return dict(re.findall(r"^(\d+)\. (.*)$", PAGE.read_text(), re.M))


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """The page's cells: for each architecture what each capability is, `✓` or the number of a refusal."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(head[2:], row[2:], strict=True)) for row in rows}


def test_the_page_has_every_architecture_and_capability() -> None:
    cells = table()
    assert list(cells) == list(zoo.ZOO)
    assert len(cells) >= 30
    assert all(list(row) == list(CAPABILITIES) for row in cells.values())


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", chosen())
def test_an_architecture_does_what_the_page_says(name: str, capability: str, tiny_cache: Path) -> None:
    cell = table()[name][capability]
    result, sentence = outcome(subject(name), capability)
    assert result != "wrong", f"{capability}: {sentence}"
    assert (cell == "✓") == (result == "right"), f"{capability} is {result} now: {sentence}"
    if result == "refused":
        assert sentences()[cell] == sentence
