"""The page Sparsity, without a browser, on a tiny model that has learned something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from grammar import sentences
from pages import complaint, ended, quiet, read_from, run_code, script
from pages import visit as visit_page
from streamlit.testing.v1 import AppTest

import workbench as wb
from workbench.corpus import Corpus

SETTINGS: dict[str, Any] = {"tokens": 512}


@pytest.fixture(scope="module")
def folders(zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models that have learned a grammar, and texts of it."""
    root = tmp_path_factory.mktemp("sparsity")
    for name, how in (("gated", "llama"), ("plain", "gpt2")):
        learned = wb.training.fine_tune(
            zoo[how], Corpus(sentences(120, 0)), tokens=20_000, lr=3e-3, batch=8, context=64
        )
        learned.network.module.save_pretrained(root / name)
        tiny.tokenizer(chat=False).save_pretrained(root / name)
    (root / "texts.txt").write_text("\n\n".join(sentences(60, 1)))
    return root / "gated", root / "plain", root / "texts.txt"


def visit(folders: tuple[Path, Path, Path]) -> AppTest:
    """A new session on the page, with the texts chosen."""
    page = visit_page("sparsity", folders[0])
    read_from(page, "sparsity corpus", folders[2])
    page.number_input(key="sparsity tokens").set_value(SETTINGS["tokens"])
    return page.run()


def key_of(folder: Path) -> tuple[str, ...]:
    """The task that measures a model on the texts of its grammar."""
    import caching

    texts = str(folder.parent / "texts.txt")
    (key,) = [one for one in caching._tasks() if one[0] == "sparsity" and one[1] == str(folder) and one[3] == texts]
    return key


def test_a_model_is_measured(folders: tuple[Path, Path, Path], tiny_cache: Path) -> None:
    page = visit(folders)
    assert not page.metric
    page.button(key="measure sparsity").click().run()
    page = quiet(ended(page, key_of(folders[0])))
    from sparsity.panel import INCREASES

    model = wb.load_model(str(folders[0]))
    found = wb.sparsity.measure_sparsities(model, wb.Corpus.load(str(folders[2])), list(INCREASES), **SETTINGS)
    one = found[INCREASES.index(0.01)]
    assert page.metric[0].value == f"{one.sparsity:.1%}"
    assert page.metric[1].value == f"{one.ppl_increase:.2%}"
    assert page.metric[2].value == f"{one.reported.ppl_increase:.2%}"
    table = page.dataframe[0].value
    shares = [one.sparsity, one.baselines["fixed"].sparsity, one.baselines["top_k"].sparsity]
    assert list(table["left out"]) == [f"{share:.1%}" for share in shares]
    page.select_slider(key="sparsity p").set_value(0.1).run()
    assert quiet(page).metric[0].value == f"{found[-1].sparsity:.1%}"
    printed = run_code(script(page, "measure_sparsities"))
    assert f"{found[-1].sparsity:.4f}" in printed


def test_the_greediest_words_of_a_text(folders: tuple[Path, Path, Path], tiny_cache: Path) -> None:
    page = visit(folders)
    page.button(key="measure sparsity").click().run()
    page = quiet(ended(page, key_of(folders[0])))
    page.text_area(key="sparse text").set_value("The small <b>dog</b> ran").run()
    import caching

    model = wb.load_model(str(folders[0]))
    found = caching.task(key_of(folders[0])).result()[2]
    demand = wb.sparsity.token_activity(model, found, "The small <b>dog</b> ran")
    table = quiet(page).dataframe[1].value
    assert list(table["active"]) == sorted((one.active for one in demand), reverse=True)[:10]
    printed = run_code(script(page, "token_activity"))
    assert float(printed.split()[0]) == pytest.approx(max(one.active for one in demand), abs=1e-4)
    page.text_area(key="sparse text").set_value(" ").run()
    assert "no text" in complaint(page)


def test_two_models_side_by_side(folders: tuple[Path, Path, Path], tiny_cache: Path) -> None:
    page = visit(folders)
    page.session_state["known models"] = [str(folders[0]), str(folders[1])]
    page.run()
    page.selectbox(key="sparsity other").set_value(str(folders[1])).run()
    page.button(key="measure sparsity").click().run()
    ended(page, key_of(folders[0]))
    page = quiet(ended(page, key_of(folders[1])))
    import caching

    both = [caching.task(key_of(folder)).result()[2] for folder in folders[:2]]
    assert [page.metric[place].value for place in (0, 3)] == [f"{one.sparsity:.1%}" for one in both]
    assert len(page.dataframe) == 4


def test_texts_that_can_not_be_used(folders: tuple[Path, Path, Path], tiny_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a\n\nb\n\nc")
    page = visit((*folders[:2], tmp_path / "short.txt"))
    page.button(key="measure sparsity").click().run()
    import caching

    key = next(one for one in caching._tasks() if str(tmp_path / "short.txt") in one)
    assert "no two tokens" in complaint(ended(page, key))


def test_the_neurons_and_their_groups(folders: tuple[Path, Path, Path], tiny_cache: Path) -> None:
    page = visit(folders)
    page.button(key="measure sparsity").click().run()
    page = quiet(ended(page, key_of(folders[0])))
    page.button(key="look at neurons").click().run()
    import caching
    from sparsity import neurons

    key = next(one for one in caching._tasks() if one[0] == "sparsity neurons")
    page = quiet(ended(page, key))
    looked = caching.task(key).result()
    assert [one.value for one in page.metric[-3:-1]] == [
        f"{float(looked.activity.always().float().mean()):.1%}",
        f"{float(looked.activity.never().float().mean()):.1%}",
    ]
    table = page.dataframe[-1].value
    assert list(table["picked"]) == list(neurons.PICKED) * 3
    printed = run_code(script(page, "group_neurons"))
    rises = [float(line.split()[-1]) for line in printed.splitlines()[-3:]]
    assert rises == pytest.approx(list(table["rise"])[:3], abs=1e-4)
