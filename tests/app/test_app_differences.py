"""The page Differences, and two prompts on the page Circuits, without a browser: tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from pages import button, complaint, quiet, script, visit, words
from pages import ended as ended_task


@pytest.fixture(autouse=True)
def _own_cache(tiny_cache: Path) -> None:
    """Tiny models stay out of the user's cache."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    paths = tuple(tmp_path_factory.mktemp("differences") / name for name in ("one", "other"))
    for number, path in enumerate(paths):
        module = tiny.build("llama")
        with torch.no_grad():
            module.model.layers[1].mlp.up_proj.weight[7] += number
        module.save_pretrained(path)
        tiny.tokenizer(chat=False).save_pretrained(path)
    return paths[0], paths[1]


def test_findings_of_two_folders(folders: tuple[Path, Path]) -> None:
    page = quiet(visit("differences", folders[0]))
    page.text_input(key="differences folder").set_value(str(folders[1]))
    page.number_input(key="differences tokens").set_value(64)
    page.run()
    button(page, "Compare").click().run()
    page = quiet(ended_task(page, page.session_state["differences"].key))
    assert "neurons.1.up:7" in words(page).replace("\\", "")
    assert "/?feature=neurons.1.up%3A7" in words(page)
    code = script(page, "compare_models")
    assert str(folders[1]) in code
    page.text_input(key="differences folder").set_value(str(folders[0] / "none")).run()
    button(page, "Compare").click().run()
    page = ended_task(page, page.session_state["differences"].key)
    assert "none" in complaint(page)


def test_two_prompts_on_circuits(folders: tuple[Path, Path]) -> None:
    page = visit("circuits", folders[0])
    page.text_input(key="positions clean").set_value("The dog ran to")
    page.text_input(key="positions corrupted").set_value("The cat and to")
    page.text_input(key="positions right").set_value("a")
    page.text_input(key="positions wrong").set_value("b")
    quiet(page.run())
    for press, method in (("Estimate", "estimate"), ("Patch each cell", "exact")):
        button(page, press).click().run()
        page = quiet(ended_task(page, page.session_state["positions"].key(method)))
    assert any("correlation" in one.value for one in page.caption)
    page.toggle(key="position inside").set_value(True).run()
    quiet(page)
    assert "align_prompts" in script(page, "patch_positions")
    page.text_input(key="positions right").set_value("The dog").run()
    assert "not a single token" in complaint(page)
