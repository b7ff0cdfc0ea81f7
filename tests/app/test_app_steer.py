"""The page Steer, without a browser: in this process, on the default model."""

from __future__ import annotations

import pytest
from pages import button, complaint, quiet, run_code, script, texts, visit

import workbench as wb
from workbench.core.text import plain
from workbench.interventions.protocol import FeatureIntervention
from workbench.interventions.saved import to_json
from workbench.measures.comparison import random_twins

DOG = "neurons.29.gate:808"

pytestmark = pytest.mark.real


def test_a_preset_shows_an_effect_at_one_click(model: wb.model.LanguageModel) -> None:
    page = visit("steer")
    page.slider(key="length").set_value(16)
    button(page, "Dog neuron").click().run()
    plain, edited = texts(quiet(page))
    alone = wb.compare(model, model.chat_prompt("What is your favourite animal?"), [wb.Clamp(DOG, 20.0)], 16)
    assert [plain, edited] == [alone.baseline.text, alone.edited.text]
    assert plain != edited


def test_the_copied_answer_is_the_shown_one(model: wb.model.LanguageModel) -> None:
    page = visit("steer", feature=DOG)
    page.slider(key="length").set_value(8)
    page.slider(key="temperature").set_value(0.8)
    page.number_input(key="top_k").set_value(40)
    page.number_input(key="seed").set_value(3)
    page.slider(key="repetition_penalty").set_value(1.2)
    page.number_input(key="min_new_tokens").set_value(3)
    page.text_area(key="stop strings").set_value("zzz\\n\nqqq")
    page.toggle(key="control").set_value(True)
    page.text_area(key="prompt").set_value('Say "hello"\nand goodbye.').run()
    button(page, "Generate").click().run()
    shown = texts(quiet(page))
    assert len(shown) == 3
    (twin,) = random_twins(model, [wb.Clamp(DOG, 20.0)], 3)
    assert f"**{plain(f'Control: {twin.feature}')}**" in [one.value for one in page.markdown]
    printed = run_code(script(page, "wb.compare"))
    for text in shown:
        assert text in printed


def test_settings_changed_since_are_said() -> None:
    page = visit("steer", feature=DOG)
    page.slider(key="length").set_value(8)
    button(page, "Generate").click().run()
    assert "have changed" not in " ".join(caption.value for caption in page.caption)
    page.slider(key="length").set_value(16).run()
    assert "have changed" in " ".join(caption.value for caption in page.caption)


def test_a_dose_is_measured_and_copied(model: wb.model.LanguageModel) -> None:
    page = visit("steer", feature=DOG)
    page.session_state["mode"] = "Continue a text"
    prompt = "My favourite animal is a"
    page.text_area(key="prompt").set_value(prompt).run()
    button(page, "Measure").click().run()
    curve = page.session_state["curve"].response
    assert len(quiet(page).code) == 1
    alone = wb.measures.dose_response(model, prompt, " dog", curve.values, lambda value: [wb.Clamp(DOG, value)])
    assert curve.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    printed = run_code(page.code[0].value).splitlines()
    assert float(printed[0].split()[1]) == pytest.approx(curve.plain, abs=1e-4)
    assert len(printed) == 1 + len(curve.values)


@pytest.mark.parametrize(
    ("prompt", "word"), [("", "empty"), ("   ", "empty"), ("word " * 9000, "tokens"), (None, "empty")]
)
def test_a_bad_prompt(prompt: str | None, word: str) -> None:
    page = visit("steer", feature=DOG)
    if prompt is None:  # a continued text, not a chat
        page.session_state["mode"] = "Continue a text"
    page.text_area(key="prompt").set_value(prompt or "").run()
    button(page, "Generate").click().run()
    assert word in complaint(page)


@pytest.mark.parametrize(
    ("page", "link", "word"), [("browse", "neurons.99.gate:1", "layer 99"), ("steer", "neurons.29.gate:99999", "99999")]
)
def test_a_bad_link(page: str, link: str, word: str) -> None:
    assert word in complaint(visit(page, feature=link))


def test_an_edit_that_can_never_act() -> None:
    page = visit("steer", feature=DOG)
    page.selectbox(key="where-0").set_value("generated")
    page.slider(key="length").set_value(8).run()
    quiet(page)
    from shared import edits

    page.session_state["rows"] = [edits.Row(7, wb.Clamp(wb.Feature.parse(DOG), 1.0, positions=[5000]))]
    page.run()
    button(page, "Generate").click().run()
    assert "can't act at position 5000" in complaint(page)


def test_a_word_offers_neurons_to_add(model: wb.model.LanguageModel) -> None:
    page = visit("steer")
    page.text_input(key="adder").set_value("dog").run()
    best = wb.neurons.neurons_writing(model, " dog", "down", scale="unit", top=1)[0][0]
    next(one for one in page.button if one.key == f"add {best}").click().run()
    assert [str(row.start.feature) for row in quiet(page).session_state["rows"]] == [str(best)]
    page.text_input(key="adder").set_value("neurons.29.up:5").run()
    assert [str(row.start.feature) for row in quiet(page).session_state["rows"]] == [str(best), "neurons.29.up:5"]
    assert page.text_input(key="adder").value == ""
    page.text_input(key="adder").set_value("neurons.29.up:99999").run()
    assert "99999" in complaint(page)
    button(page, "").click()
    next(one for one in page.button if one.key == "remove-0").click().run()
    assert len(page.session_state["rows"]) == 1


def all_kinds() -> list[FeatureIntervention]:
    dog, up = wb.Feature.parse(DOG), wb.Feature.parse("neurons.3.up:7")
    return [
        wb.Clamp(dog, 123.25),
        wb.Scale(up, -0.37, positions="prompt"),
        wb.Ablate(dog),
        wb.Ablate(up, "mean", positions=[0, 3]),
        wb.Ablate(up, "mean", 0.125),
        wb.Steer(dog, 2.5, positions="generated"),
        wb.Steer.along("blocks.3.hook_resid_post", [0.5] * 576, 2.0),
    ]


def test_edits_survive_the_widgets(model: wb.model.LanguageModel) -> None:
    """What a file says is what the page then does, and what it saves."""
    page = visit("steer")
    from shared import edits
    from steer import storage

    said = to_json(model, all_kinds())
    page.session_state["rows"] = [
        edits.Row(number, one) for number, one in enumerate(storage.read(model, said.encode()))
    ]
    page.slider(key="length").set_value(8).run()
    button(page, "Generate").click().run()
    assert list(quiet(page).session_state["answer"].request.interventions) == all_kinds()
    code = script(page, "wb.compare")
    scope: dict = {"wb": wb}
    exec(code[code.index("edits = [") : code.index("prompt =")], scope)
    assert to_json(model, scope["edits"]) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[1, 2]",
        "3",
        '{"format": 1}',
        '{"format": 99, "model": {"name": "a", "hash": "b"}, "interventions": []}',
        '{"format": 1, "model": {"name": "a", "hash": "b"}, "interventions": []}',
        '{"format": 1, "model": {"name": "a", "hash": "HASH"}, "interventions": 5}',
        '{"format": 1, "model": {"name": "a", "hash": "HASH"}, "interventions": [5]}',
        '{"format": 1, "model": {"name": "a", "hash": "HASH"}, "interventions": [{"kind": "Melt"}]}',
        '{"format": 1, "model": {"name": "a", "hash": "HASH"}, "interventions": '
        '[{"kind": "Clamp", "feature": "neurons.29.gate:808", "value": NaN}]}',
        '{"format": 1, "model": {"name": "a", "hash": "HASH"}, "interventions": '
        '[{"kind": "Clamp", "feature": "neurons.99.gate:808", "value": 1}]}',
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(model: wb.model.LanguageModel, text: str) -> None:
    from steer import storage

    with pytest.raises((wb.model.EditError, wb.dictionaries.FeatureError)) as refused:
        storage.read(model, text.replace("HASH", model.hash).encode())
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


def test_a_reply_goes_on_from_the_chosen_answer(model: wb.model.LanguageModel) -> None:
    page = visit("steer", feature=DOG)
    page.slider(key="length").set_value(8)
    page.text_area(key="prompt").set_value("Name an animal.").run()
    button(page, "Generate").click().run()
    answer = texts(quiet(page))[1]
    page.button(key="reply 1").click().run()
    assert page.text_area(key="prompt").value == ""
    page.text_area(key="prompt").set_value("And another?").run()
    button(quiet(page), "Generate").click().run()
    said = [("user", "Name an animal."), ("assistant", answer.strip()), ("user", "And another?")]
    prompt = model.chat_prompt([{"role": role, "content": words} for role, words in said])
    alone = wb.compare(model, prompt, page.session_state["answer"].request.interventions, 8)
    assert texts(quiet(page)) == [alone.baseline.text, alone.edited.text]
    assert alone.edited.text in run_code(script(page, "wb.compare"))
    button(page, "New conversation").click().run()
    assert "have changed" in " ".join(caption.value for caption in page.caption)
