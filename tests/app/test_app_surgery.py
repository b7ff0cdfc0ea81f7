"""The page Surgery, without a browser: a tiny model, tried, kept, undone, saved, loaded."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from pages import complaint, quiet, run_code, script, start, switch, words
from pages import ended as ended_task
from pages import visit as visit_page
from streamlit.testing.v1 import AppTest

import workbench as wb
from workbench.interventions.protocol import FeatureIntervention
from workbench.surgery.certificate.check import Verification
from workbench.surgery.registry import OPERATIONS


@pytest.fixture
def folder(tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's folder, beside it texts and room for runs."""
    tiny.build("llama").save_pretrained(tmp_path / "model")
    tiny.tokenizer(chat=False).save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(tiny.TEXT.strip().splitlines() * 2))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "model"


@pytest.fixture
def _checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain transformers loads saved checkpoints in this process; a new process takes seconds to import it."""

    def verify(folder: str, model: wb.model.LanguageModel) -> Verification:
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokens = torch.randint(model.network.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            difference = float((plain(input_ids=tokens).logits - model(tokens)).abs().max())
        return Verification(difference, transformers.__version__, type(plain).__name__, [])

    monkeypatch.setattr(wb.surgery, "verify_checkpoint", verify)


def visit(folder: Path, edits: list[FeatureIntervention] | None = None) -> AppTest:
    """A new session on Surgery, with these edits in Steer's list."""
    state: dict = {"surgery corpus": str(folder.parent / "texts.txt"), "surgery tokens": 64}
    if edits:
        from steer.edits import Row

        state["rows"] = [Row(100 + number, one) for number, one in enumerate(edits)]
    return visit_page("surgery", folder, state)


def ended(page: AppTest, place: str = "surgery key") -> AppTest:
    """The page once the work in this place has ended."""
    return ended_task(page, page.session_state[place])


def tried(page: AppTest) -> AppTest:
    page.button(key="surgery try").click().run()
    return ended(page)


def choose(page: AppTest, operation: str) -> AppTest:
    return quiet(page.selectbox(key="surgery operation").set_value(operation).run())


def test_an_edit_is_baked_kept_copied_and_undone(folder: Path) -> None:
    edit = wb.Clamp("neurons.1.gate:5", 3.0)
    page = quiet(tried(quiet(visit(folder, [edit]))))
    child = page.session_state["surgery tried"].child
    model = wb.load_model(str(folder))
    assert child.model.hash == wb.bake(model, [edit]).model.hash
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["KL"] == f"{child.certificate.kl:.3g}"
    assert shown["Perplexity"] == f"{child.certificate.perplexity_after:.4g}"
    page.button(key="surgery keep").click().run()
    assert len(quiet(page).session_state["surgery"]) == 1
    code = script(page, "wb.surgery.apply_operation")
    printed = run_code(code.replace(str(folder.parent / "runs" / "edited"), str(folder.parent / "copied")))
    assert f"{child.certificate.kl:.4g} nats" in printed
    assert wb.load_model(str(folder.parent / "copied")).hash == child.model.hash
    page.button(key="surgery undo").click().run()
    assert quiet(page).session_state["surgery"] == []
    assert "as it was opened" in "".join(one.value for one in page.caption)


def test_steps_follow_one_another_are_written_saved_and_loaded(folder: Path) -> None:
    page = choose(visit(folder), "remove_layers")
    page.multiselect(key="surgery remove_layers layers").set_value([1]).run()
    tried(page).button(key="surgery keep").click().run()
    choose(page, "remove_heads")
    page.multiselect(key="surgery remove_heads heads").set_value([0, 3]).run()
    tried(page).button(key="surgery keep").click().run()
    kept = quiet(page).session_state["surgery"]
    assert [step.operation for step in kept] == ["remove_layers", "remove_heads"]
    child = kept[-1].child
    assert child.model.network.n_layers == 2
    assert child.before is kept[0].child

    page.text_input(key="surgery prompt").set_value("The dog").run()
    page.button(key="surgery write").click().run()
    texts = quiet(page).session_state["surgery texts"].texts
    model = wb.load_model(str(folder))
    assert texts.before.text == model.generate("The dog", 48).text
    assert texts.after.text == child.model.generate("The dog", 48).text

    page.button(key="surgery save").click().run()
    page = quiet(ended(page, "surgery saving"))
    assert len(page.success) == 1
    saved = folder.parent / "runs" / "edited"
    assert wb.load_model(str(saved)).hash == child.model.hash
    assert json.loads((saved / "certificate.json").read_text())["child"]["hash"] == child.model.hash

    page = visit(folder)
    page.button(key="surgery load").click().run()
    page = quiet(ended(page, "surgery loading"))
    assert page.session_state["surgery"][0].child.model.hash == child.model.hash
    assert "Loaded" in words(page)
    tokens = torch.arange(20)[None]
    assert torch.equal(page.session_state["surgery"][0].child.undo()(tokens), model(tokens))


def kept(page: AppTest, layer: int) -> AppTest:
    """The page with the attention of one more layer taken out."""
    choose(page, "remove_sublayers")
    page.multiselect(key="surgery remove_sublayers layers").set_value([layer]).run()
    return quiet(tried(page).button(key="surgery keep").click().run())


def test_a_trial_of_what_was_undone_meanwhile_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = kept(visit(folder), 0)
    go = threading.Event()
    apply_operation = wb.surgery.apply_operation
    monkeypatch.setattr(
        wb.surgery, "apply_operation", lambda *args, **how: go.wait(60) and apply_operation(*args, **how)
    )
    page.button(key="surgery try").click().run()
    key = page.session_state["surgery key"]
    page.button(key="surgery undo").click().run()
    import caching

    task = caching.task(key)
    assert task is not None
    assert task.stopping
    go.set()
    task.wait(60)
    assert task.done
    assert caching.task(key) is None or caching.task(key).failed  # type: ignore[union-attr]
    page = quiet(page.run())
    assert page.session_state["surgery"] == []
    assert not [one for one in page.button if one.key == "surgery keep"]


@pytest.mark.usefixtures("_checked_here")
def test_nothing_that_was_made_is_replaced_without_a_question(folder: Path) -> None:
    page = kept(visit(folder), 0)
    page.button(key="surgery save").click().run()
    page = ended(page, "surgery saving")
    saved = folder.parent / "runs" / "edited"
    first = wb.load_model(str(saved)).hash
    page = kept(page, 1)
    second = page.session_state["surgery"][-1].child.model.hash

    page.button(key="surgery load").click().run()  # the second step is not in the folder
    assert "replaces the steps and the trial here" in "".join(one.value for one in quiet(page).warning)
    page.button(key="surgery no").click().run()
    assert [step.child.model.hash for step in quiet(page).session_state["surgery"]] == [first, second]
    page.button(key="surgery save").click().run()
    assert "replaces it" in "".join(one.value for one in quiet(page).warning)
    assert wb.load_model(str(saved)).hash == first
    page.button(key="surgery yes").click().run()
    page = quiet(ended(page, "surgery saving"))
    assert wb.load_model(str(saved)).hash == second
    page.button(key="surgery load").click().run()  # nothing is lost by it now
    page = quiet(ended(page, "surgery loading"))
    assert [step.child.model.hash for step in page.session_state["surgery"]] == [second]


@pytest.mark.usefixtures("_checked_here")
def test_a_question_is_about_one_folder_and_one_model(folder: Path) -> None:
    page = kept(visit(folder), 0)
    page.button(key="surgery save").click().run()
    page = ended(page, "surgery saving")
    saved = str(folder.parent / "runs" / "edited")
    page.button(key="surgery save").click().run()
    assert len(quiet(page).warning) == 1
    page.text_input(key="surgery folder").set_value(str(folder.parent / "other")).run()
    assert not quiet(page).warning
    page.text_input(key="surgery folder").set_value(saved).run()
    assert len(quiet(page).warning) == 1
    page.button(key="surgery undo").click().run()  # there is nothing to save any more
    assert not quiet(page).warning

    choose(page, "remove_sublayers")
    page.multiselect(key="surgery remove_sublayers layers").set_value([2]).run()
    page = quiet(tried(page))
    page.button(key="surgery load").click().run()  # what was tried would be lost
    assert "replaces the steps and the trial here" in "".join(one.value for one in quiet(page).warning)
    page.button(key="surgery no").click().run()
    assert quiet(page).session_state["surgery tried"] is not None


def test_what_was_wrong_is_said_until_something_else_is_asked(folder: Path) -> None:
    page = choose(visit(folder), "remove_layers")
    assert "No layer is chosen" in complaint(tried(page))
    page.multiselect(key="surgery remove_layers layers").set_value([1]).run()
    assert not quiet(page).error


def test_every_operation_has_a_form(folder: Path) -> None:
    page = visit(folder)
    for name in OPERATIONS:
        choose(page, name)
        assert OPERATIONS[name].about in "".join(one.value for one in page.caption).replace("\\", "")


@pytest.mark.parametrize(
    ("operation", "settings", "word"),
    [
        ("remove_layers", {}, "No layer is chosen"),
        ("remove_layers", {"layers": [0, 1, 2]}, "All layers"),
        ("remove_heads", {}, "No head is chosen"),
        ("bake", {}, "nothing to bake"),
    ],
)
def test_what_cant_be_done_is_one_sentence(folder: Path, operation: str, settings: dict, word: str) -> None:
    page = choose(visit(folder), operation)
    for name, value in settings.items():
        page.multiselect(key=f"surgery {operation} {name}").set_value(value).run()
    assert word in complaint(tried(page))


def test_a_feature_that_is_not_there_can_be_mended(folder: Path) -> None:
    page = choose(visit(folder), "ablate_direction")
    page.text_input(key="surgery ablate_direction feature").set_value("neurons.77.post:1").run()
    assert "layer 77" in complaint(page)
    assert page.button(key="surgery try").disabled
    page.text_input(key="surgery ablate_direction feature").set_value("neurons.2.post:1").run()
    page = quiet(tried(page))
    child = page.session_state["surgery tried"].child
    written = wb.load_model(str(folder)).network.neuron_weights(2, "down")[1]
    assert child.reference == (wb.interventions.AblateDirection(written),)
    page.button(key="surgery discard").click().run()
    assert quiet(page).session_state["surgery tried"] is None


def test_what_weights_cant_hold_is_said_and_can_stay_beside(folder: Path) -> None:
    here = wb.Clamp("neurons.1.gate:5", 3.0, positions="prompt")
    page = tried(visit(folder, [wb.Scale("neurons.2.up:5", 3.0), here]))
    assert "some positions only" in complaint(page)
    page.toggle(key="surgery bake beside").set_value(True).run()
    page = quiet(tried(page))
    assert page.session_state["surgery tried"].child.beside == (here,)


@pytest.mark.parametrize("typed", ["", "texts.txt", "nowhere", "damaged"])
def test_a_folder_that_cant_be_loaded(folder: Path, typed: str) -> None:
    (folder.parent / "damaged").mkdir()
    (folder.parent / "damaged" / "surgery.json").write_text("{}")
    page = visit(folder)
    page.text_input(key="surgery folder").set_value(str(folder.parent / typed) if typed else "").run()
    page.button(key="surgery load").click().run()
    if typed == "damaged":
        page = ended(page, "surgery loading")
    assert complaint(page)


def test_what_was_kept_is_there_when_the_page_is_loaded_again(folder: Path) -> None:
    first = kept(kept(visit(folder), 0), 2)
    link = first.query_params["changes"]
    want = [step.child.model.hash for step in first.session_state["surgery"]]

    def again(model: Path) -> AppTest:
        page = start(model, {"known models": [str(folder), str(model)]})
        return quiet(switch(page, "surgery", changes=link if isinstance(link, str) else link[0]))

    page = again(folder)
    assert [step.child.model.hash for step in page.session_state["surgery"]] == want
    assert page.query_params["changes"] != link  # two windows at one address don't write over one another's changes
    page.button(key="surgery undo").click().run()
    page.button(key="surgery undo").click().run()
    assert page.session_state["surgery"] == []
    assert "changes" not in page.query_params
    assert again(folder).session_state["surgery"] == []
    assert len(quiet(first.run()).session_state["surgery"]) == 2  # the window that they were made in is open still
    tiny.build("llama", seed=1).save_pretrained(folder.parent / "other")
    tiny.tokenizer(chat=False).save_pretrained(folder.parent / "other")
    page = again(folder.parent / "other")
    assert page.session_state["surgery"] == []  # of another model
    page = kept(page, 1)
    page.selectbox(key="source").set_value(str(folder)).run()
    assert len(quiet(page).session_state["surgery"]) == 2


@pytest.mark.usefixtures("_checked_here")
def test_one_thing_is_said_of_folders_at_a_time(folder: Path) -> None:
    page = kept(visit(folder), 0)
    (folder.parent / "taken").mkdir()
    (folder.parent / "taken" / "mine.txt").write_text("mine")
    page.text_input(key="surgery folder").set_value(str(folder.parent / "taken")).run()
    page.button(key="surgery save").click().run()
    assert "taken is there already" in complaint(ended(page, "surgery saving"))
    page.text_input(key="surgery folder").set_value(str(folder.parent / "nowhere")).run()
    page.button(key="surgery load").click().run()
    assert "nowhere holds no model" in complaint(page)
    assert len(page.error) == 1
    assert not page.warning
    page.text_input(key="surgery folder").set_value(str(folder.parent / "new")).run()
    page.button(key="surgery save").click().run()
    page = quiet(ended(page, "surgery saving"))
    assert len(page.success) == 1
    page.button(key="surgery undo").click().run()
    assert not quiet(page).success


def test_texts_of_a_model_are_escaped(folder: Path) -> None:
    page = choose(visit(folder), "remove_layers")
    page.multiselect(key="surgery remove_layers layers").set_value([1]).run()
    page = quiet(tried(page))
    page.text_input(key="surgery prompt").set_value("<b>dog</b> **cat**").run()
    page.button(key="surgery write").click().run()
    assert "<b>" not in "".join(one.value for one in quiet(page).markdown)
