"""Every architecture of the zoo is right or refused, and docs/models.md says which.

The suite runs a seeded sample of the table; `make zoo` runs it whole and writes the page anew.
"""

from __future__ import annotations

import functools
from pathlib import Path

import models_page
import pytest
import zoo
from capabilities import CAPABILITIES, Subject
from outcomes import outcome

SAMPLE = 8
"""Architectures that the suite runs; `WORKBENCH_SEED` chooses them."""
ALWAYS = ("llama", "gemma3", "mixtral")


@functools.lru_cache(1)
def subject(name: str) -> Subject:
    """An architecture, opened once for all its capabilities."""
    return Subject(name)


cells = functools.cache(models_page.tables)


def test_the_page_has_every_architecture_and_capability() -> None:
    cells = models_page.tables()["model"]
    assert list(cells) == list(zoo.ZOO)
    assert len(cells) >= 30
    assert all(list(row) == list(CAPABILITIES) for row in cells.values())


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", zoo.sample(SAMPLE - len(ALWAYS), ALWAYS))
def test_an_architecture_does_what_the_page_says(name: str, capability: str, tiny_cache: Path) -> None:
    result, sentence = outcome(CAPABILITIES[capability], subject(name))
    assert result != "wrong", sentence
    models_page.check(cells()["model"][name][capability], result, sentence)
