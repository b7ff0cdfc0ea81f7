"""Folders of models that run through dictionaries: what their note may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")
POINT = "blocks.1.hook_resid_post"
TOKENS = torch.arange(12).view(1, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that runs through a codebook; beside it a dictionary that is not the model's."""
    path = tmp_path_factory.mktemp("saved")
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    torch.manual_seed(0)
    model.splices = {POINT: wb.Codebook(d_in=32, n_codes=8, k=2)}
    wb.interventions.save_model(model, path / "model")
    wb.Codebook(d_in=32, n_codes=8, k=2).save(path / "elsewhere")
    return path / "model"


@pytest.fixture
def note(folder: Path) -> Any:
    """What the note says; it is restored after the test."""
    text = (folder / "spliced.json").read_text()
    yield json.loads(text)
    (folder / "spliced.json").write_text(text)


@pytest.mark.parametrize(
    "name", ["..", "../../elsewhere", "ABSOLUTE", "0/../../../elsewhere", "a\\b", "", ".", "0/", "/"]
)
def test_a_dictionary_outside_the_folder_is_refused(folder: Path, note: Any, name: str) -> None:
    name = str(folder.parent / "elsewhere") if name == "ABSOLUTE" else name
    (folder / "spliced.json").write_text(json.dumps(note | {"hook_points": {POINT: name}}))
    with pytest.raises(wb.model.ModelError, match="names a dictionary outside its own folder"):
        wb.load_model(folder)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"format": "1"}, "format should be"),
        ({"format": 99}, "format 99"),
        ({"hook_points": [POINT]}, "hook_points should be"),
        ({"hook_points": {POINT: 0}}, "hook_points"),
        ({"hash": None}, "hash should be"),
        ({"plain_hash": "0" * 64}, "was made for a model of the hash 000000000000"),
        ({"about": 3}, "about"),
    ],
)
def test_a_note_of_another_form_is_refused(folder: Path, note: Any, changed: dict, match: str) -> None:
    (folder / "spliced.json").write_text(json.dumps(note | changed))
    with pytest.raises(wb.model.ModelError, match=match):
        wb.load_model(folder)
    lacking = {key: value for key, value in note.items() if key not in changed}
    (folder / "spliced.json").write_text(json.dumps(lacking))
    if set(changed) != {"about"}:
        with pytest.raises(wb.model.ModelError, match=f"it has no {next(iter(changed))}"):
            wb.load_model(folder)


def test_a_note_without_what_is_optional_opens(folder: Path, note: Any) -> None:
    whole = wb.load_model(folder)
    (folder / "spliced.json").write_text(json.dumps({key: value for key, value in note.items() if key != "about"}))
    opened = wb.load_model(folder)
    assert torch.equal(opened(TOKENS), whole(TOKENS))
    assert (opened.hash, opened.about) == (whole.hash, {})


def test_a_tokenizer_takes_the_place_of_a_folders_own_or_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    assert wb.load_model(tmp_path).tokenizer is None
    assert wb.load_model(tmp_path, tokenizer=tiny.tokenizer()).to_tokens("The dog").shape[0] == 1
    for source in (folder, None):
        with pytest.raises(wb.model.ModelError, match="leave tokenizer out"):
            wb.load_model(source, tokenizer=tiny.tokenizer())


def test_a_base_of_what_is_no_adapter_is_refused(folder: Path) -> None:
    for source in (folder, None, tiny.build("llama")):
        with pytest.raises(wb.model.ModelError, match="is no folder of an adapter, so it has no base"):
            wb.load_model(source, base="some/model")
