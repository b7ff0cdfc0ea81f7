"""The app in tests: its folder on the path, and the test modules of other rooms that its tests take helpers from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import ROOT, Server, chromium, find_chromium, serve
from pages import listening
from playwright.sync_api import Browser, BrowserContext, Page, expect

import workbench as wb
from workbench.model.default_model import DEFAULT_MODEL

TESTS = Path(__file__).parents[1]
APP = TESTS.parent / "app"
TITLES = {"steer": "Steer", "inspect": "Read"}
"""The titles of pages by a part of their address."""

sys.path[:0] = [str(TESTS / room) for room in ("attribution", "circuits", "sparsity", "synthetic")]


@pytest.fixture(autouse=True)
def _for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    listening(monkeypatch, "localhost")


@pytest.fixture(autouse=True)
def _app_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `streamlit run` does it; a folder's name means the app's, whatever else was imported under it."""
    monkeypatch.syspath_prepend(str(APP))
    for name in [folder.name for folder in APP.iterdir() if folder.is_dir()]:
        module = sys.modules.get(name)
        places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or ""]
        if module is not None and not any(place.startswith(str(APP)) for place in places):
            monkeypatch.delitem(sys.modules, name)


@pytest.fixture(autouse=True)
def _nothing_typed(_app_importable: None) -> None:
    """No folder that an earlier test typed is known; the app keeps them for all sessions of a process."""
    import caching

    caching.typed_folders().clear()


@pytest.fixture(autouse=True)
def _opened(request: pytest.FixtureRequest, _app_importable: None) -> None:
    """The app's default model is the tests' own in this process."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if "real" in marks and "browser" not in marks:
        import caching

        model, key = request.getfixturevalue("model"), ("model", DEFAULT_MODEL, "auto", "auto")
        if key not in caching._jobs():
            caching._jobs()[key] = caching.Job(lambda tell: model)


# ---- a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        reason = "no Chromium: install it, or run: python -m playwright install chromium"
        if os.environ.get("CI") or os.environ.get("WORKBENCH_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(path) as running:
        yield running


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, model: wb.model.LanguageModel) -> Iterator[Path]:
    """A folder with a small dictionary of random latents, and its index; the app finds it, and trains beside it."""
    folder = tmp_path_factory.mktemp("shelf")
    sae = wb.TopKSAE(576, 48, k=8, hook_point="blocks.15.hook_resid_post", name="random-15")
    sae.save(folder / "dictionaries" / "random-15")
    corpus = wb.Corpus(["The dog ran to the river.", "New York is a city, and New Jersey is not."] * 8)
    wb.build_index(model, sae, corpus, folder / "dictionaries" / "random-15" / "index", context=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_DICTIONARIES", str(folder / "dictionaries"))
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, shelf: Path) -> Iterator[Server]:
    """The app; whatever the tests did, it must not have written a traceback."""
    with serve(ROOT / "app" / "main.py", tmp_path_factory.mktemp("app") / "log") as server:
        yield server
        assert "Traceback" not in server.said(), server.said()


STILL = """addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = `*, *::before, *::after {
    animation-duration: 0s !important; animation-iteration-count: 1 !important; transition-duration: 0s !important; }`;
  document.head.append(style);
});"""
"""Nothing moves: drawing what turns while the app works takes processor time from the work."""


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One store of the app's scripts for all pages of a file; a browser without it compiles them for each."""
    made = browser.new_context(viewport={"width": 1440, "height": 1200}, reduced_motion="reduce")
    made.add_init_script(STILL)
    yield made
    made.close()


@pytest.fixture
def visit(context: BrowserContext, app: Server) -> Iterator[Callable[[str], Page]]:
    """Opens an address of the app in a page, which is a session of the app of its own."""
    pages = []

    def go(address: str = "/") -> Page:
        page = context.new_page()
        pages.append(page)
        page.goto(app.url + address)
        title = next((title for path, title in TITLES.items() if path in address), "Browse")
        expect(page.get_by_role("heading", name=title)).to_be_visible()
        return page

    yield go
    for page in pages:
        page.close()
