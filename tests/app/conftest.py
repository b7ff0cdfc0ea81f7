"""The app in tests: its folder on the path, and the test modules of other rooms that its tests take helpers from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
APP = TESTS.parent / "app"

sys.path[:0] = [str(TESTS / room) for room in ("attribution", "circuits", "sparsity", "synthetic")]


@pytest.fixture(autouse=True)
def _app_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `streamlit run` does it; a folder's name means the app's, whatever else was imported under it."""
    monkeypatch.syspath_prepend(str(APP))
    for name in [folder.name for folder in APP.iterdir() if folder.is_dir()]:
        module = sys.modules.get(name)
        places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or ""]
        if module is not None and not any(place.startswith(str(APP)) for place in places):
            monkeypatch.delitem(sys.modules, name)
