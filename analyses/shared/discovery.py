"""Find the studies: each folder of `analyses` with an `__init__.py`, except `shared`, is one."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import analyses
from analyses.shared.study import Study


def study_folders() -> dict[str, Path]:
    """Folders of all studies by name, in alphabetical order."""
    inits = (init for place in analyses.__path__ for init in Path(place).glob("*/__init__.py"))
    return {init.parent.name: init.parent for init in sorted(inits) if init.parent.name != "shared"}


def sentence_of(folder: Path) -> str:
    """The first paragraph of the docstring of a study's package, in one line; the package is not imported."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def load_study(name: str) -> Study:
    """The `STUDY` that the package `analyses.NAME` exports."""
    return importlib.import_module(f"analyses.{name}").STUDY
