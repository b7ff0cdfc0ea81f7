"""The sidebar chooses device and type of the model, and every page follows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from accelerator import DEVICE, emulated
from pages import button, complaint, quiet, script, start, switch
from streamlit.testing.v1 import AppTest

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("placed") / "m"
    tiny.build("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def facts(page: AppTest) -> str:
    return "\n".join(one.value for one in page.sidebar.caption).replace("\\", "")


def choose(page: AppTest, device: str, dtype: str) -> AppTest:
    page.selectbox(key="device asked for").set_value(device)
    page.selectbox(key="type asked for").set_value(dtype)
    return button(page, "Open the model so").click().run()


def test_the_sidebar_shows_and_chooses_device_and_type(folder: Path) -> None:
    page = quiet(start(folder))
    assert "on cpu in float32" in facts(page)
    assert "GB used" in facts(page)
    assert "GB free" in facts(page)
    page = quiet(choose(page, "cpu", "bfloat16"))
    assert "on cpu in bfloat16" in facts(page)
    assert "on cpu in float32" in facts(quiet(choose(page, "auto", "auto")))


def test_what_cannot_be_had_is_one_sentence_and_the_choice_stays(folder: Path) -> None:
    page = start(folder, {"placed": ("cuda:7", "auto")})
    assert complaint(page).startswith("This machine has no device 'cuda:7'")
    assert "on cpu in float16" in facts(quiet(choose(page, "cpu", "float16")))


def visit_all(page: AppTest) -> None:
    """Every page as it is drawn, and an answer under an edit."""
    from shared import pages

    for entry in pages.discover():
        quiet(switch(quiet(page), entry.folder))
    quiet(switch(page, "browse", feature="neurons.1.post:3"))
    quiet(switch(page, "steer"))
    quiet(button(page, "Generate").click().run())
    assert page.session_state["answer"]


def test_every_page_runs_in_16_bits(folder: Path) -> None:
    page = start(folder, {"placed": ("cpu", "bfloat16")})
    visit_all(page)
    assert "device='cpu', dtype='bfloat16')" in script(page, "load_model")


@pytest.fixture
def _emulated_in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device is there in the threads of sessions and jobs too."""
    run = threading.Thread.run

    def inside(self: threading.Thread) -> None:
        with emulated():
            run(self)

    monkeypatch.setattr(threading.Thread, "run", inside)
    with emulated():
        yield


@pytest.mark.usefixtures("_emulated_in_threads")
def test_every_page_follows_the_device_of_the_model(folder: Path) -> None:
    import caching

    module: Any = tiny.build("llama").to(DEVICE)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    caching._jobs()["model", str(folder), "auto", "auto"] = caching.Job(lambda tell: model)
    page = start(folder)
    assert "on emulated:0 in float32" in facts(page)
    visit_all(page)
