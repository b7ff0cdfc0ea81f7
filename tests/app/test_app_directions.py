"""The page Directions, without a browser: what is found is what the library finds, tried and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from pages import button, quiet, run_code, script, switch, visit, words
from streamlit.testing.v1 import AppTest

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")
WORDS = ("dog", "cat", "man", "girl", "king", "bird")
HAVE, LACK = [f"the {word} ran home" for word in WORDS], [f"a {word} ate it" for word in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("directions") / "m"
    tiny.build("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def opened(folder: Path, **state: str) -> AppTest:
    texts = {"direction positives": "\n".join(HAVE), "direction negatives": "\n".join(LACK)}
    return visit("directions", folder, {**texts, "direction prompt": "the dog", **state})


def test_what_is_found_is_tried_and_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    page = quiet(button(quiet(opened(folder)), "Find").click().run())
    model = wb.load_model(folder)
    found = wb.directions.find_directions(model, HAVE, LACK)
    layer = page.selectbox(key="direction layer").value
    page.slider(key="direction strength").set_value(1.0)
    page = quiet(button(page, "Write").click().run())
    edit = wb.Steer.along(found[layer], found[layer].strength)
    written = wb.compare(model, "the dog", [edit], 32)
    shown = words(page).replace("\\", "")
    assert f"KL {sum(written.kl) / len(written.kl):.3g}" in shown
    printed = run_code(script(page, "find_directions").replace(", 40, ", ", 32, "))
    assert printed.strip() == written.edited.text.strip()
    page.text_input(key="direction name").set_value("home")
    page = quiet(button(page, "Add to the dict").click().run())
    kept = wb.load_dictionary(tmp_path / "runs" / "home")
    assert kept.kind == "directions"
    page = quiet(button(page, "Add to Steer").click().run())
    assert "Steer(along" in words(quiet(switch(page, "steer"))).replace("\\", "")


@pytest.mark.parametrize(
    ("lack", "sentence"),
    [("", "0 negative texts"), ("\n".join(HAVE), "positive and negative"), ("a dog\na cat", "2 negative texts")],
)
def test_examples_that_can_not_do_are_refused_in_a_sentence(folder: Path, lack: str, sentence: str) -> None:
    page = button(opened(folder, **{"direction negatives": lack}), "Find").click().run()
    assert not page.exception
    assert sentence in page.error[0].value


def test_files_of_examples_are_read_or_refused() -> None:
    from directions.examples import read

    pairs = b'{"positive": "a", "negative": "b"}\n\n{"text": "c", "label": 1}\n{"text": "d", "label": false}\n'
    assert read(pairs) == (["a", "c"], ["b", "d"])
    for wrong in (b"\xff", b"[1]", b'{"text": "c"}', b'{"text": "c", "label": 2}', b"not json"):
        with pytest.raises(wb.directions.DirectionError, match="examples"):
            read(wrong)


def test_too_many_typed_texts_are_refused_and_not_cut(folder: Path) -> None:
    many = "\n".join(f"the dog ran {number}" for number in range(1001))
    page = visit("directions", folder, {"direction positives": many, "direction negatives": "\n".join(LACK)})
    page = button(page, "Find").click().run()
    assert "1,001 texts of a class; give at most 1,000" in page.error[0].value
