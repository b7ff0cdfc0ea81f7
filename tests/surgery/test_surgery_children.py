"""Children on disk and in memory: the chain of steps, former names, damaged notes and certificates."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import workbench as wb
from workbench.surgery.child import SurgeryError, files_of
from workbench.surgery.notes import FORMER_NAMES, edit_hash, sealed

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
EDITS = [wb.Clamp("neurons.0.post:3", 2.0)]


def fresh() -> wb.model.LanguageModel:
    return wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())


def measured(child: wb.surgery.Child) -> dict[str, Any]:
    """A certificate as plain data."""
    return child.certify(CORPUS, 60).to_dict()


@pytest.mark.parametrize("of_models", [False, True], ids=["children", "models"])
def test_a_certificate_does_not_depend_on_who_holds_the_steps_between(of_models: bool) -> None:
    def part(child: wb.surgery.Child) -> Any:
        return child.model if of_models else child

    first = wb.bake(fresh(), EDITS)
    second = wb.surgery.prune(part(first), 0.3, score="magnitude")
    third = wb.surgery.quantise(part(second), 8)
    assert third.before is second
    assert second.before is first
    wanted = measured(third)
    del first, second, third

    alone = part(wb.bake(fresh(), EDITS))
    gc.collect()
    alone = part(wb.surgery.prune(alone, 0.3, score="magnitude"))
    gc.collect()
    last = wb.surgery.quantise(alone, 8)
    del alone
    gc.collect()
    assert measured(last) == wanted
    assert len(wanted["differences"]) == 3
    assert wanted["parent"]["hash"] == fresh().hash
    assert last.before is not None
    assert last.before.before is not None
    assert last.before.before.reference == tuple(EDITS)


def saved(folder: Path) -> tuple[wb.model.LanguageModel, wb.surgery.Child]:
    """A model, and a certified child of two steps in a folder."""
    parent = fresh()
    child = wb.surgery.merge_kv_heads(wb.bake(parent, EDITS), 1, method="mean")
    child.certify(CORPUS, 60)
    child.save_pretrained(folder)
    return parent, child


def record(folder: Path) -> None:
    """Enter the files of a child's folder into its note, as they are now."""
    path = folder / "surgery.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | {"files": files_of(folder)})))


def test_what_format_1_saved_opens_under_the_present_names(tmp_path: Path) -> None:
    parent, child = saved(tmp_path / "child")
    note = json.loads((tmp_path / "child" / "surgery.json").read_text())
    certificate = json.loads((tmp_path / "child" / "certificate.json").read_text())
    assert note["format"] == 3
    note = {name: value for name, value in note.items() if name not in ("files", "weights_hash", "sha256")}
    note["hash"] = child.model.weights_hash
    for steps in (note["history"], certificate["steps"]):
        steps[1]["operation"] = "fewer_kv_heads"
    (tmp_path / "child" / "surgery.json").write_text(json.dumps(note | {"format": 1}))
    (tmp_path / "child" / "certificate.json").write_text(json.dumps(certificate))
    opened = wb.surgery.open_child(tmp_path / "child", parent)
    assert opened.model.hash == child.model.hash
    assert opened.history == child.history
    assert [step["operation"] for step in opened.history] == ["bake", "merge_kv_heads"]
    assert opened.certificate == child.certificate
    assert opened.certificate.to_markdown() == child.certificate.to_markdown()
    further = wb.surgery.quantise(opened, 8)
    assert [step["operation"] for step in further.history] == ["bake", "merge_kv_heads", "quantise"]
    assert wb.surgery.dare(parent, wb.surgery.quantise(parent, 8), 0.5).history
    opened.model.about["surgery"][1]["operation"] = "fewer_kv_heads"  # as a model of before remembers it
    again = wb.surgery.quantise(opened, 8)
    assert again.history[:2] == further.history[:2]


def test_a_step_has_one_hash_under_all_its_names() -> None:
    for former, name in FORMER_NAMES.items():
        assert edit_hash({"operation": former, "heads": 1}) == edit_hash({"operation": name, "heads": 1})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda note: note | {"format": 4}, "is in format 4, and this version reads formats 1 to 3"),
        (lambda note: {}, "is not a note of surgery: it has no format"),
        (lambda note: note | {"history": []}, "history should be"),
        (lambda note: note | {"hash": 5}, "hash should be a valid string, not 5"),
        (lambda note: note | {"history": [{"operation": "prune"}]}, "it has no history.0.edit_hash"),
        (lambda note: [note], "should be a valid dictionary"),
    ],
)
def test_a_damaged_note_is_one_sentence(change: Callable[[Any], Any], match: str, tmp_path: Path) -> None:
    parent, _ = saved(tmp_path / "child")
    path = tmp_path / "child" / "surgery.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for read in (lambda: wb.surgery.open_child(path.parent, parent), lambda: wb.surgery.dare(parent, path.parent)):
        with pytest.raises(SurgeryError, match=match):
            read()


def test_a_damaged_certificate_is_refused(tmp_path: Path) -> None:
    _, child = saved(tmp_path / "child")
    whole = child.certificate.to_dict()  # type: ignore[union-attr]
    assert wb.surgery.Certificate.from_dict(copy.deepcopy(whole)) == child.certificate
    for change, match in (
        ({"differences": [None, None]}, "max_logit_difference is not the largest"),
        ({"differences": [*whole["differences"], None]}, "3 differences for 2 steps"),
        ({"steps": [], "differences": []}, "0 differences for 0 steps"),
        ({"kl": "much"}, "kl should be a valid number, not 'much'"),
        ({"tasks": {"half": [1.0]}}, "tasks.half should"),
        ({"parent": "model"}, "parent should be a valid dictionary"),
        ({"steps": [{"operation": "prune"}]}, "it has no steps.0.edit_hash"),
    ):
        with pytest.raises(SurgeryError, match=f"This is not a certificate: .*{match}"):
            wb.surgery.Certificate.from_dict(whole | change)
    infinite = wb.surgery.Certificate.from_dict(whole | {"perplexity_after": float("inf")})
    (tmp_path / "child" / "certificate.json").write_text(json.dumps(infinite.to_dict()))
    record(tmp_path / "child")
    assert wb.surgery.open_child(tmp_path / "child", fresh()).certificate == infinite
    for text in ("[", "{}", "[]"):
        (tmp_path / "child" / "certificate.json").write_text(text)
        record(tmp_path / "child")
        with pytest.raises(SurgeryError, match=r"The certificate .* can't be read"):
            wb.surgery.open_child(tmp_path / "child", fresh())


@pytest.mark.parametrize("about", [5, {"trained": 5}, {"surgery": 5}, {"surgery": [{}]}])
def test_a_damaged_note_of_a_saved_model_is_one_sentence(about: Any, tmp_path: Path) -> None:
    parent = fresh()
    wb.interventions.save_model(wb.surgery.quantise(parent, 8).model, tmp_path / "model")
    assert wb.surgery.dare(parent, tmp_path / "model").own
    (path,) = (one for one in (tmp_path / "model").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"about": about}))
    with pytest.raises(SurgeryError, match="is not a note of a saved model: "):
        wb.surgery.dare(parent, tmp_path / "model")


def test_an_empty_folder_is_saved_to(tmp_path: Path) -> None:
    child = wb.surgery.quantise(fresh(), 8)
    child.certify(CORPUS, 60)
    (tmp_path / "empty").mkdir()
    child.save_pretrained(tmp_path / "empty")
    assert wb.surgery.open_child(tmp_path / "empty", child.parent).model.hash == child.model.hash
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".hidden").write_text("mine")
    with pytest.raises(SurgeryError, match="holds no checkpoint of this kind"):
        child.save_pretrained(tmp_path / "taken")
