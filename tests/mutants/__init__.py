"""Faults planted by hand, and the law tests that have to find each; `make mutants` plants them one by one.

A fault is one replacement in one file of the package: `old`, which the file holds exactly once, becomes `new`. The
suite checks that every fault can still be planted (`tests/laws/test_mutants.py`).
"""

from __future__ import annotations

from mutants import of_dictionaries, of_measures, of_runs, of_surgery
from mutants.table import Mutant as Mutant
from mutants.table import planted as planted

MUTANTS = [*of_surgery.MUTANTS, *of_dictionaries.MUTANTS, *of_runs.MUTANTS, *of_measures.MUTANTS]
