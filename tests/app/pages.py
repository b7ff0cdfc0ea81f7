"""Pages of the app in this process: sessions, what they show, and what their scripts print."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
import streamlit
from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

import workbench as wb

APP = Path(__file__).parents[2] / "app"
PATIENCE = 400
"""Seconds that a task may take."""


@functools.cache
def installed_components() -> BidiComponentManager:
    """Components that packages of this environment bring: each session of a test would look for them anew."""
    found = BidiComponentManager()
    found.discover_and_register_components(start_file_watching=False)
    return found


def start(source: str | Path | None = None, state: dict[str, Any] | None = None, **query: str) -> AppTest:
    """A new session on the Browse page, on this model or the default one."""
    page = AppTest.from_file(str(APP / "main.py"), default_timeout=240)
    page._bidi_component_manager = installed_components()
    if source is not None:
        page.session_state["source"] = str(source)
    for key, value in (state or {}).items():
        page.session_state[key] = value
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def visit(folder: str, source: str | Path | None = None, state: dict[str, Any] | None = None, **query: str) -> AppTest:
    """A new session on the page in a folder of the app."""
    return switch(start(source, state), folder, **query)


def switch(page: AppTest, folder: str, **query: str) -> AppTest:
    """The session on another page."""
    for key, value in query.items():
        page.query_params[key] = value
    return page.switch_page(f"{folder}/page.py").run()


ESCAPED_TWICE = re.compile(r"\\{3}[.\-]")
"""A text whose marks show a backslash."""


def quiet(page: AppTest) -> AppTest:
    """The page, after a check that it shows no error."""
    assert not page.exception
    assert [error.value for error in page.error] == []
    drawn = (*page.markdown, *page.caption, *page.sidebar.caption, *page.success, *page.info, *page.warning)
    shown = [text.value for text in drawn]
    assert [text for text in shown if ESCAPED_TWICE.search(text)] == []
    return page


def complaint(page: AppTest) -> str:
    """The one sentence that a page shows."""
    assert not page.exception
    (error,) = page.error
    sentence = error.value.replace("\\", "")
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def words(page: AppTest) -> str:
    """All Markdown on the page."""
    return "\n".join(text.value for text in page.markdown)


def button(page: AppTest, label: str) -> Button:
    """The first button with this in its label."""
    return next(one for one in page.button if label in one.label)


def script(page: AppTest, call: str) -> str:
    """The script on the page that holds this call."""
    return next(code.value for code in page.code if call in code.value)


def texts(page: AppTest) -> list[str]:
    """The answers of Steer side by side, as plain text."""
    both = page.session_state["answer"].comparison
    return [both.baseline.text, *(side.generation.text for side in both.sides)]


_default = functools.cache(wb.load_model)
"""The default model, opened once for all scripts, apart from the app's own."""


def run_code(code: str) -> str:
    """What a script prints."""
    output, load = io.StringIO(), wb.load_model

    def opened(source: str | None = None) -> wb.model.LanguageModel:
        return _default() if source is None else load(source)

    with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        patch.setattr(wb, "load_model", opened)
        exec(compile(code, "copied", "exec"), {"__name__": "copied"})
    return output.getvalue()


def read_from(page: AppTest, key: str, texts: object) -> None:
    """Type the path of the texts."""
    page.session_state["known corpora"] = ["stories", str(texts)]
    page.run()
    page.selectbox(key=key).set_value(str(texts))


def ended(page: AppTest, key: tuple[str, ...]) -> AppTest:
    """The page once the task of this key has ended."""
    import caching

    until = time.monotonic() + PATIENCE
    while (task := caching.task(key)) is not None and not task.done:
        assert time.monotonic() < until
        task.wait(0.2)
    return page.run()


def listening(patch: pytest.MonkeyPatch, address: str) -> None:
    """Let the app listen on this address; only `streamlit run` reads the one in `app/.streamlit/config.toml`."""
    real = streamlit.config.get_option
    patch.setattr("streamlit.get_option", lambda name: address if name == "server.address" else real(name))
