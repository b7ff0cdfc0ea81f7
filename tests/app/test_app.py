"""The app's logic, without a browser: pages run in this process, on the default model and on tiny ones."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from streamlit.testing.v1 import AppTest

import workbench as wb
from workbench.interventions.protocol import FeatureIntervention
from workbench.interventions.saved import to_json

APP = Path(__file__).parents[2] / "app"
DOG = "neurons.29.gate:808"

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def _app_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `streamlit run` does it."""
    monkeypatch.syspath_prepend(str(APP))


def start(**query: str) -> AppTest:
    """A new session on the Browse page."""
    page = AppTest.from_file(str(APP / "main.py"), default_timeout=240)
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def opening(source: str) -> AppTest:
    """A new session on another model."""
    page = AppTest.from_file(str(APP / "main.py"), default_timeout=240)
    page.session_state["source"] = source
    return page.run()


def steer(**query: str) -> AppTest:
    """A new session on the Steer page."""
    page = start()
    for key, value in query.items():
        page.query_params[key] = value
    return page.switch_page("steer/page.py").run()


def quiet(page: AppTest) -> AppTest:
    """The page, after a check that it shows no error."""
    assert not page.exception
    assert [error.value for error in page.error] == []
    return page


def complaint(page: AppTest) -> str:
    """The one sentence that a page shows."""
    assert not page.exception
    (error,) = page.error
    sentence = error.value.replace("\\", "")
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def words(page: AppTest) -> str:
    """All Markdown on the page."""
    return "\n".join(text.value for text in page.markdown)


def neurons(page: AppTest) -> list[str]:
    """The first column of the table."""
    return list(page.dataframe[0].value["neuron"])


def button(page: AppTest, label: str) -> object:
    return next(one for one in page.button if label in one.label)


def run_code(code: str) -> str:
    """What a script prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "copied", "exec"), {"__name__": "copied"})
    return said.getvalue()


def texts(page: AppTest) -> list[str]:
    """The answers side by side, as plain text."""
    both = page.session_state["answer"].comparison
    return [both.baseline.text, *(side.generation.text for side in both.sides)]


# ---- Browse


def test_an_empty_search_lists_the_most_specialised_neurons() -> None:
    page = quiet(start())
    table = wb.decode_neurons(wb.load_model())
    best = int(table.excess[0].argmax())
    assert neurons(page)[0] == str(table.feature(best))
    excess = list(page.dataframe[0].value["excess"])
    assert excess == sorted(excess, reverse=True)


def test_search_shows_what_the_table_finds(model: wb.model.LanguageModel) -> None:
    page = start()
    page.text_input(key="query").set_value("water").run()
    hits = wb.decode_neurons(model).search("water")
    assert neurons(quiet(page)) == [str(hit.feature) for hit in hits]
    assert page.dataframe[0].value["tokens"][0][0] == "␣water"

    page.slider(key="layers").set_value((20, 29))
    page.number_input(key="max_rank").set_value(0)
    page.number_input(key="min_score").set_value(2.0).run()
    chosen = [hit for hit in hits if hit.layer >= 20 and hit.rank == 0 and hit.scores[0] >= 2.0]
    assert neurons(quiet(page)) == [str(hit.feature) for hit in chosen]


def test_an_example_is_one_click() -> None:
    page = start()
    button(page, "dog").click().run()
    assert page.text_input(key="query").value == "dog"
    assert neurons(quiet(page)) == [DOG]


def test_a_word_at_any_rank(model: wb.model.LanguageModel) -> None:
    page = start()
    page.text_input(key="query").set_value("California").run()
    assert "No neuron has" in words(quiet(page))
    best = [str(feature) for feature, _ in wb.neurons.neurons_writing(model, " California", "gate", top=50)]
    assert neurons(page) == best


def test_the_card_says_what_the_functions_say(model: wb.model.LanguageModel) -> None:
    page = quiet(start(feature=DOG))
    assert "Layer 29, neuron 808, gate" in [head.value for head in page.subheader]
    (metric,) = page.metric
    table = wb.decode_neurons(model)
    assert metric.value == f"{table.hit(table.row(wb.Feature.parse(DOG))).excess:.1f} σ"
    printed = run_code(page.code[-1].value if "nearest" in page.code[-1].value else page.code[0].value)
    assert "promoted ' dog'" in printed
    assert str(wb.neurons.nearest_neurons(model, wb.Feature.parse(DOG), 1)[0][0]) in printed


@pytest.mark.parametrize("query", ["", "water", "California"])
def test_the_copied_search_finds_the_same(query: str) -> None:
    page = start()
    page.text_input(key="query").set_value(query)
    page.slider(key="layers").set_value((5, 29)).run()
    printed = run_code(page.code[0].value)
    assert [line.split(" ")[0] for line in printed.splitlines()] == neurons(quiet(page))


@pytest.mark.parametrize(
    ("feature", "word"),
    [
        ("nonsense", "is not a feature"),
        ("neurons.30.gate:1", "no layer 30"),
        ("neurons.3.gate:1536", "1,536 features"),
        ("neurons.3.middle:1", "gate, up, post"),
        ("runs/my-sae:3", "not loaded"),
    ],
)
def test_a_bad_link(feature: str, word: str) -> None:
    assert word in complaint(start(feature=feature))
    assert word in complaint(steer(feature=feature))


def test_a_model_that_is_not_there() -> None:
    page = opening("/nowhere/at/all")
    assert "/nowhere/at/all" in complaint(page)
    page.session_state["source"] = "SmolLM2-135M-Instruct"
    assert neurons(quiet(page.run()))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_another_model_from_a_folder(name: str, tmp_path: Path, tiny_cache: Path) -> None:
    tiny.build(name).save_pretrained(tmp_path)
    tiny.tokenizer(chat=False).save_pretrained(tmp_path)
    page = opening(str(tmp_path))
    assert neurons(quiet(page))
    page.text_input(key="query").set_value("dog").run()
    found = neurons(quiet(page))[0]
    page.query_params["feature"] = found
    page.switch_page("steer/page.py").run()
    page.slider(key="length").set_value(8)
    button(page, "Generate").click().run()
    plain, edited = texts(quiet(page))
    assert plain
    assert edited


# ---- Steer


def test_a_preset_shows_an_effect_at_one_click(model: wb.model.LanguageModel) -> None:
    page = steer()
    page.slider(key="length").set_value(24)
    button(page, "Dog neuron").click().run()
    plain, edited = texts(quiet(page))
    alone = wb.compare(model, model.chat_prompt("What is your favourite animal?"), [wb.Clamp(DOG, 20.0)], 24)
    assert [plain, edited] == [alone.baseline.text, alone.edited.text]
    assert plain != edited


def test_the_copied_answer_is_the_shown_one() -> None:
    page = steer(feature=DOG)
    page.slider(key="length").set_value(8)
    page.slider(key="temperature").set_value(0.8)
    page.number_input(key="top_k").set_value(40)
    page.number_input(key="seed").set_value(3)
    page.toggle(key="control").set_value(True)
    page.text_area(key="prompt").set_value('Say "hello"\nand goodbye.').run()
    button(page, "Generate").click().run()
    shown = texts(quiet(page))
    assert len(shown) == 3
    printed = run_code(next(code.value for code in page.code if "wb.compare" in code.value))
    for text in shown:
        assert text in printed


def test_settings_changed_since_are_said() -> None:
    page = steer(feature=DOG)
    page.slider(key="length").set_value(8)
    button(page, "Generate").click().run()
    assert "have changed" not in " ".join(caption.value for caption in page.caption)
    page.slider(key="length").set_value(16).run()
    assert "have changed" in " ".join(caption.value for caption in page.caption)


def test_a_dose_is_measured_and_copied(model: wb.model.LanguageModel) -> None:
    page = steer(feature=DOG)
    button(page, "Measure").click().run()
    curve = page.session_state["curve"].response
    assert len(quiet(page).code) == 1
    prompt = model.chat_prompt("What is your favourite animal?")
    alone = wb.measures.dose_response(model, prompt, " dog", curve.values, lambda value: [wb.Clamp(DOG, value)])
    assert curve.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
    printed = run_code(page.code[0].value).splitlines()
    assert float(printed[0].split()[1]) == pytest.approx(curve.plain, abs=1e-4)
    assert len(printed) == 1 + len(curve.values)


@pytest.mark.parametrize(
    ("prompt", "word"), [("", "empty"), ("   ", "empty"), ("word " * 9000, "tokens"), (None, "empty")]
)
def test_a_bad_prompt(prompt: str | None, word: str) -> None:
    page = steer(feature=DOG)
    if prompt is None:  # a continued text, not a chat
        page.session_state["mode"] = "Continue a text"
    page.text_area(key="prompt").set_value(prompt or "").run()
    button(page, "Generate").click().run()
    assert word in complaint(page)


def test_an_edit_that_can_never_act() -> None:
    page = steer(feature=DOG)
    page.selectbox(key="where-0").set_value("generated")
    page.slider(key="length").set_value(8).run()
    quiet(page)
    from steer import edits

    page.session_state["rows"] = [edits.Row(7, wb.Clamp(wb.Feature.parse(DOG), 1.0, positions=[5000]))]
    page.run()
    button(page, "Generate").click().run()
    assert "can't act at position 5000" in complaint(page)


def test_a_word_offers_neurons_to_add(model: wb.model.LanguageModel) -> None:
    page = steer()
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
    page = steer()
    from steer import edits, storage

    said = to_json(model, all_kinds())
    page.session_state["rows"] = [
        edits.Row(number, one) for number, one in enumerate(storage.read(model, said.encode()))
    ]
    page.slider(key="length").set_value(8).run()
    button(page, "Generate").click().run()
    assert list(quiet(page).session_state["answer"].request.interventions) == all_kinds()
    code = next(code.value for code in page.code if "wb.compare" in code.value)
    scope: dict = {"wb": wb}
    exec(code[code.index("edits = [") : code.index("prompt =")], scope)
    assert to_json(model, scope["edits"]) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
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


# ---- what pages are made of


def test_only_one_file_writes_html() -> None:
    for path in APP.rglob("*.py"):
        text = path.read_text()
        if path.name != "tokens.py":
            assert ".html(" not in text, path
        assert "unsafe_allow" not in text, path


def test_caching_is_in_one_file_and_hides_no_argument() -> None:
    for path in APP.rglob("*.py"):
        tree = ast.parse(path.read_text())
        cached = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and any("cache_" in ast.unparse(one) for one in node.decorator_list)
        ]
        assert path.name == "caching.py" or not cached, path
        for function in cached:
            assert not [one.arg for one in function.args.args if one.arg.startswith("_")], function.name


def test_plain_text_has_no_markup() -> None:
    from shared.tokens import plain

    shown = plain("**a** <b> [c](d) :red[e] $f$ `g` ![h](i)\nj")
    assert "\n" not in shown
    for letter in "*<>[]()$`!":
        assert shown.count(letter) == shown.count("\\" + letter)


def test_long_work_runs_once_for_all_who_wait() -> None:
    import caching

    runs, go = [], threading.Event()

    def work(tell: Callable[[float, str], None]) -> int:
        runs.append(1)
        go.wait(10)
        tell(0.5, "half")
        return 7

    first = caching._job(("test", "once"), work)
    assert caching._job(("test", "once"), work) is first
    go.set()
    first.wait(10)
    assert first.result() == 7
    assert (first.share, first.what, len(runs)) == (0.5, "half", 1)
    assert caching._job(("test", "once"), work) is first


def test_long_work_that_nobody_waits_for_can_be_stopped() -> None:
    import caching

    begun, go = threading.Event(), threading.Event()

    def work(tell: Callable[[float, str], None]) -> None:
        begun.set()
        go.wait(10)
        tell(0.1, "still at it")

    job = caching.Job(work)
    begun.wait(10)
    job.waiting = 1
    job.stop()  # another session waits
    assert not job._stop
    job.waiting = 0
    job.stop()
    go.set()
    job.wait(10)
    assert job.failed
    with pytest.raises(caching.Stopped):
        job.result()


def test_failed_work_is_tried_again() -> None:
    import caching

    def fail(tell: Callable[[float, str], None]) -> None:
        raise ValueError("no")

    first = caching._job(("test", "failing"), fail)
    first.wait(10)
    assert first.failed
    assert caching._job(("test", "failing"), fail) is not first


def test_figures_take_any_token() -> None:
    from workbench import figures
    from workbench.measures.comparison import TokenChange

    odd = ["<script>", "\n", " $x$", "\x00", "", "a" * 99]
    bars = figures.token_bars(odd, [6.0, 5.0, 4.0, 3.0, 2.0, -1.0], [0.5, 1e-3, 1e-5, 1e-9, 0.0, 1.0])
    shown = json.dumps(bars.to_plotly_json(), default=str)
    assert "<script>" not in shown
    assert bars.layout.yaxis.ticktext[1] == "↵"
    moved = figures.token_changes([TokenChange(1, "<b>", 0.1, 0.9)])
    assert moved.layout.yaxis.ticktext[0] == "&lt;b&gt;"
    curve = figures.dose_curve(wb.measures.dose_response.DoseResponse(" dog", [0.0, 1.0], [-3.0, -2.0], -4.0), at=1.0)
    assert curve.data[0].y[1] == pytest.approx(math.exp(-2))


def test_pages_import_without_the_heavy_libraries() -> None:
    """The frame of the page is drawn before torch is loaded."""
    tree = ast.parse((APP / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "workbench"]
    for name in ("caching", "components/session", "components/waiting", "components/tokens"):
        body = ast.parse((APP / f"{name}.py").read_text()).body
        for node in body:
            assert not (isinstance(node, ast.Import) and any(one.name.startswith("workbench") for one in node.names))
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench")), name
    assert "streamlit" in sys.modules
