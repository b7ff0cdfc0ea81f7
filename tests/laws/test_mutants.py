"""The faults that `make mutants` plants can be planted, and there are enough of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant, planted

import workbench

PACKAGE = Path(workbench.__file__).parent
TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_be_planted(mutant: Mutant) -> None:
    ast.parse(planted(mutant, (PACKAGE / mutant.file).read_text()))
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (TESTS / file).read_text()


def test_there_are_many_in_every_room_and_for_every_law() -> None:
    laws = re.findall(r"^## (\d+)\. ", (TESTS / "docs" / "laws.md").read_text(), re.M)
    assert {mutant.law for mutant in MUTANTS} == set(laws)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    rooms = {mutant.file.split("/")[0] for mutant in MUTANTS}
    assert rooms >= {"surgery", "dictionaries", "interventions", "training", "model", "corpus", "harvest", "measures"}
    assert rooms >= {"evaluation", "sparsity", "circuits", "attribution", "index"}
