"""Paths that visitors type: any of this machine where the app listens to it alone, else only the app's own folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
from pages import APP, complaint, listening, quiet, start, visit

import workbench as wb

POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def own(tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the app was started in, beside one that is nobody's business."""
    from shared import dictionaries, places

    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(places, "START", folder)
    monkeypatch.setattr(dictionaries.shipped, "HOME", folder / "none")
    monkeypatch.delenv("WORKBENCH_RUNS", raising=False)
    monkeypatch.delenv("WORKBENCH_DICTIONARIES", raising=False)
    for place in (folder, tmp_path / "other"):
        tiny.build("llama").save_pretrained(place / "model")
        tiny.tokenizer().save_pretrained(place / "model")
    (tmp_path / "other" / "texts.txt").write_text(tiny.TEXT)
    (folder / "texts.txt").write_text(tiny.TEXT)
    wb.TopKSAE(32, 8, k=2, hook_point=POINT, name="other").save(tmp_path / "other" / "sae")
    (folder / "linked").symlink_to(tmp_path / "other")
    return folder


@pytest.mark.parametrize("address", ["0.0.0.0", "", "192.168.1.7", "::", "workbench.example"])
def test_beyond_this_machine_paths_stay_inside(own: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import places

    listening(monkeypatch, address)
    assert places.listens_beyond()
    for inside in ("model", "./model/", str(own / "model"), "stories", "owner/name:config", str(own), "runs/new"):
        assert places.allowed(inside) == inside
    outside = ["/etc/passwd", "..", "../other", "model/../../other", "linked", "linked/texts.txt", "~", "~root/x", "/"]
    for one in (*outside, str(own.parent / "other"), "a\0b", str(own.parent / "own2")):
        with pytest.raises(places.PlaceError, match="outside of the folder"):
            places.allowed(one)
    monkeypatch.setenv("WORKBENCH_RUNS", str(own.parent / "other"))
    assert places.allowed(str(own.parent / "other" / "run"))


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1", "127.1.2.3"])
def test_on_this_machine_every_path_goes(own: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared import places

    listening(monkeypatch, address)
    assert not places.listens_beyond()
    assert places.allowed("/etc/passwd") == "/etc/passwd"


def test_pages_refuse_what_lies_outside(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = own.parent / "other"
    listening(monkeypatch, "0.0.0.0")
    for model in (other / "model", "linked/model", "../other/model"):
        assert "outside of the folder" in complaint(start(model))
    page = quiet(start("model"))
    page.text_input(key="typed folder").set_value(str(other / "sae")).run()
    assert "outside of the folder" in complaint(page)

    page = visit("surgery", "model")
    before = sorted(other.rglob("*"))
    for key in ("surgery load", "surgery save"):
        page.text_input(key="surgery folder").set_value("linked/model").run()
        if not page.button(key=key).disabled:
            page.button(key=key).click().run()
            assert "outside of the folder" in complaint(page)
    page.text_input(key="surgery folder").set_value("runs/edited").run()
    page.selectbox(key="surgery operation").set_value("dare").run()
    page.text_input(key="surgery dare tuned").set_value(f"model; {other / 'model'}").run()
    assert "outside of the folder" in complaint(page)
    assert page.button(key="surgery try").disabled
    assert sorted(other.rglob("*")) == before

    import caching
    from shared import corpora, places

    for name in (other / "texts.txt", "linked/texts.txt"):
        with pytest.raises(places.PlaceError):
            corpora.opened(str(name))
    assert len(corpora.opened("texts.txt")) > 0
    assert caching.opening("model").result().network.n_layers == 3


def test_pages_take_what_lies_outside_on_this_machine(own: Path) -> None:
    page = quiet(start(own.parent / "other" / "model"))
    page.text_input(key="typed folder").set_value(str(own.parent / "other" / "sae")).run()
    quiet(page)


def test_every_path_of_a_visitor_goes_through_one_function() -> None:
    """What opens or expands a path in the app stands beside that function."""
    opens = re.compile(r"Corpus\.load\(|load_model\(|load_dictionary\(|located\(|expanduser\(")
    found = {}
    for file in APP.rglob("*.py"):
        lines = [line for line in file.read_text().splitlines() if opens.search(line) and not re.search(r"[\"']", line)]
        if lines and (left := [line for line in lines if "places.allowed(" not in line]):
            found[str(file.relative_to(APP))] = [line.strip() for line in left]
    assert found == {
        "browse/opening.py": [  # `_typed` asks first
            "_take(model, located(name))",
            "place = located(name, progress=tell, cancel=cancelled)",
        ],
        "shared/places.py": ["return (START / Path(typed).expanduser()).resolve().is_relative_to(home.resolve())"],
    }
