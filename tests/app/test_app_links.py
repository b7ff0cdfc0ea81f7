"""A link carries its model: it opens that model, or says in one sentence that it belongs to another."""

from __future__ import annotations

import pytest
import tiny
from pages import complaint, quiet, start, switch
from streamlit.testing.v1 import AppTest

import workbench as wb

FEATURE = "neurons.1.post:7"
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models with the same names of neurons and other weights."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("models") / f"m{seed}"
        tiny.build("llama", seed=seed).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        folders.append(str(folder))
    return folders


def named(folder: str) -> str:
    return f"{folder}@{wb.load_model(folder).hash[:12]}"


def heads(page: AppTest) -> list[str]:
    return [head.value for head in page.subheader]


def test_a_link_is_opened_on_its_own_model_alone(folders: list[str]) -> None:
    one, other = map(named, folders)
    page = quiet(start(folders[0], feature=FEATURE, model=one))
    assert "Layer 1, neuron 7, post" in heads(page)
    assert page.query_params["model"] == one

    page = start(folders[0], feature=FEATURE, model=other)
    assert "choose that model in the sidebar" in complaint(page)
    assert folders[1] in complaint(page)
    assert "Layer 1, neuron 7, post" not in heads(page)
    page.session_state["known models"] = folders
    page.run()
    page.selectbox(key="source").set_value(folders[1]).run()  # then the link opens
    assert "Layer 1, neuron 7, post" in heads(quiet(page))

    page.selectbox(key="source").set_value(folders[0]).run()  # and is gone with its model
    assert "Layer 1, neuron 7, post" not in heads(quiet(page))
    assert "feature" not in page.query_params


def test_a_link_to_a_model_that_the_sidebar_offers_switches_to_it(folders: list[str]) -> None:
    known = {"known models": folders}
    page = quiet(start(folders[0], known, feature=FEATURE, model=named(folders[1])))
    assert page.session_state["source"] == folders[1]
    assert "Layer 1, neuron 7, post" in heads(page)


def test_the_same_name_with_other_weights_is_said(folders: list[str]) -> None:
    page = start(folders[0], feature=FEATURE, model=f"{folders[0]}@0123456789ab")
    assert "with the weights 0123456789ab" in complaint(page)
    page = switch(start(folders[0]), "steer", feature=FEATURE, model=named(folders[1]))
    assert "choose that model in the sidebar" in complaint(page)
    assert "rows" not in page.session_state or not page.session_state["rows"]
