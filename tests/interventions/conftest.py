"""The tiny models of the tests of interventions, each twice."""

from __future__ import annotations

import pytest
import tiny
from pairs import Pair


@pytest.fixture(scope="session")
def pairs(zoo) -> dict[str, Pair]:
    return {name: Pair(zoo[name], tiny.build(name)) for name in ("llama", "gpt2", "neox")}
