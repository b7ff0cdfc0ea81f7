"""A new page is one new folder, with no edit elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from pages import APP, quiet
from streamlit.testing.v1 import AppTest

INIT = '''"""Echo."""

TITLE, ICON, URL_PATH, ORDER = "Echo", ":material/hearing:", "echo", 35
ABOUT = "Says how many layers the model has."
STATE = ("echoed",)


def available() -> bool:
    from shared import session

    return session.source() != "none"
'''
PAGE = '''"""Echo."""

import streamlit as st
from shared import pages, session


def show() -> None:
    st.markdown(f"{session.current_model().network.n_layers} layers")
    st.page_link(pages.script("steer"), label="Steer")
    st.session_state.setdefault("echoed", session.source())


if __name__ == "__main__":
    show()
'''


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the app, imported in place of the app itself."""
    copy = tmp_path / "app"
    shutil.copytree(APP, copy, ignore=shutil.ignore_patterns("__pycache__"))
    names = {path.stem for path in APP.iterdir()}
    app = {name: module for name, module in sys.modules.items() if name.split(".")[0] in names}
    for name in app:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(copy))
    yield copy
    for name in [name for name in sys.modules if name.split(".")[0] in names | {"echo"}]:
        del sys.modules[name]
    sys.modules.update(app)


def test_a_new_folder_is_a_new_page(copied: Path, tmp_path: Path, tiny_cache: Path) -> None:
    (copied / "echo").mkdir()
    (copied / "echo" / "__init__.py").write_text(INIT)
    (copied / "echo" / "page.py").write_text(PAGE)
    models = [str(tmp_path / name) for name in ("llama", "gpt2")]
    for folder in models:
        tiny.build(Path(folder).name).save_pretrained(folder)
        tiny.tokenizer(chat=False).save_pretrained(folder)
    (copied.parent / "data").symlink_to(APP.parent / "data")

    page = AppTest.from_file(str(copied / "main.py"), default_timeout=240)
    page.session_state["source"], page.session_state["known models"] = models[0], models
    quiet(page.run())
    from shared import pages

    titles = [entry.title for entry in pages.discover()]
    before = [folder.parent.name for folder in APP.glob("*/page.py")]
    assert len(titles) == len(before) + 1
    assert titles.index("Steer") < titles.index("Echo") < titles.index("Train")
    assert "echoed" in pages.model_state()

    quiet(page.switch_page("echo/page.py").run())
    assert [title.value for title in page.title] == ["Echo"]
    assert "3 layers" in [text.value for text in page.markdown]
    assert "Says how many layers the model has." in [caption.value for caption in page.caption]
    assert page.session_state["echoed"] == models[0]
    quiet(page.selectbox(key="source").set_value(models[1]).run())
    assert page.session_state["echoed"] == models[1]  # dropped with the model before


def test_a_page_without_its_constants_is_named(copied: Path) -> None:
    (copied / "echo").mkdir()
    (copied / "echo" / "__init__.py").write_text('TITLE = "Echo"\n')
    (copied / "echo" / "page.py").write_text(PAGE)
    from shared import pages

    with pytest.raises(AttributeError, match="echo"):
        pages.discover()
