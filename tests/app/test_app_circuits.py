"""The Circuits page without a browser: a tiny model and prompts of one's own; a model set by hand; the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from pages import button, complaint, quiet, run_code, script, visit
from pages import ended as ended_task
from streamlit.testing.v1 import AppTest
from test_circuit_patching import TASK

import workbench as wb
from workbench.circuits import evaluate_task, induction_model, keep_heads, to_jsonl
from workbench.figures.circuits import head_maps, roc_curves


@pytest.fixture(autouse=True)
def _own_cache(tiny_cache: Path) -> None:
    """Tiny models stay out of the user's cache."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("circuits") / "tiny"
    tiny.build("llama").save_pretrained(path)
    tiny.tokenizer(chat=False).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """The induction model in a folder."""
    path, one = tmp_path_factory.mktemp("circuits") / "induction", induction_model(0)
    one.model.network.module.save_pretrained(path)
    one.model.tokenizer.save_pretrained(path)
    return path, one


def own(page: AppTest, text: str, methods: list[str]) -> AppTest:
    page.selectbox(key="circuit task").set_value("own prompts").run()
    page.text_area(key="circuit own").set_value(text)
    page.multiselect(key="circuit methods").set_value(methods)
    return button(page, "Find heads").click().run()


def ended(page: AppTest, press: str = "", key: tuple[str, ...] = ()) -> AppTest:
    """The page once its work is done."""
    if press:
        button(page, press).click().run()
    key = key or page.session_state["circuit"].key
    return ended_task(page, key)


def test_heads_by_every_method_and_the_circuit_alone(made: tuple) -> None:
    folder, one = made
    task = one.task(6, 0)
    page = quiet(ended(own(visit("circuits", folder), to_jsonl(task), ["attribution", "patch", "zero"])))
    model = wb.load_model(folder)
    done = evaluate_task(model, task)
    assert [one.value for one in page.metric[:3]] == ["100%", "100%", f"{done.logit_difference:.2f}"]
    (judged,) = [one.value for one in page.dataframe if "auc" in one.value]
    assert list(judged["method"]) == ["attribution patching", "zero ablation"]
    assert list(judged["auc"]) == ["1.000", "1.000"]
    assert not page.warning

    page.slider(key="circuit size").set_value(2).run()
    key = (*page.session_state["circuit"].key, "ablated", "patch", "2")
    page = quiet(ended(page, "Ablate", key))
    heads = [tuple(place) for place in one.heads.nonzero().tolist()]
    shown = [float(metric.value) for metric in page.metric[4:7]]
    alone = evaluate_task(model, task, keep_heads(model, task, heads))
    without = evaluate_task(model, task, keep_heads(model, task, heads, others=False))
    assert shown == pytest.approx([done.logit_difference, alone.logit_difference, without.logit_difference], abs=0.0051)
    assert alone.accuracy == 1.0
    assert without.logit_difference < 1

    printed = run_code(script(page, "scores"))
    assert set(eval(printed.splitlines()[-1].removeprefix("zero "))[:2]) == set(heads)


def test_the_discrete_finder_and_a_model_at_chance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = quiet(ended(own(visit("circuits", folder), to_jsonl(TASK), ["discrete"])))
    assert "no better than chance" in page.warning[0].value
    assert any("no truth" in caption.value for caption in page.caption)
    request = page.session_state["circuit"]
    import caching

    found = caching.task(request.key).result()
    model = wb.load_model(folder)
    expected = wb.find_heads_discrete(model, TASK.positives, TASK.corrupted, seed=0)
    assert torch.equal(found.scores["discrete"], expected)
    assert found.judged() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no pair of prompts"),
        ("no JSON", "Line 1 is not a pair"),
        ('{"positive": "The dog ran", "corrupted": "The", "answers": ["a"], "wrong": ["b"]}', "same number of tokens"),
        (
            '{"positive": "The", "corrupted": "The", "answers": [" zebra"], "wrong": ["b"]}',
            "choose one that is one token",
        ),
        ('{"positive": "The", "corrupted": "The", "answers": [], "wrong": ["b"]}', "at least one text"),
    ],
)
def test_bad_prompts_are_one_sentence(folder: Path, text: str, said: str) -> None:
    assert said in complaint(own(visit("circuits", folder), text, ["attribution"]))


def test_a_task_that_the_tokens_can_t_write_is_one_sentence(folder: Path) -> None:
    page = visit("circuits", folder)
    assert "single tokens" in complaint(button(page, "Find heads").click().run())


def test_the_example_is_a_task_and_the_work_can_be_stopped(folder: Path) -> None:
    from workbench.circuits import from_jsonl

    page = visit("circuits", folder)
    page.selectbox(key="circuit task").set_value("own prompts").run()
    assert len(from_jsonl(page.text_area(key="circuit own").value)) == 2
    import caching
    from circuits import panel
    from circuits.request import CircuitRequest

    model = wb.load_model(folder)
    request = CircuitRequest(str(folder), "own prompts", 4, 1, to_jsonl(TASK), ("attribution", "patch"), model.hash)
    panel.begin(model, request)
    task = caching.task(request.key)
    task.stop()
    task.wait(60)
    found = task.result()
    assert set(found.scores) <= {"attribution"} or set(found.scores) == {"attribution", "patch"}


def test_the_pictures() -> None:
    figure = head_maps({"a": [[1.0, -2.0], [0.0, 0.5]], "b": [[0.0, 3.0], [1.0, 0.0]]}, [(0, 1)])
    heat = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [(one.zmin, one.zmax) for one in heat] == [(-2.0, 2.0), (0, 3.0)]
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert [(list(one.x), list(one.y)) for one in marks] == [([1], [0])] * 2
    curves = roc_curves({"a": ([0, 0.5, 1], [0, 1, 1])})
    assert [list(trace.y) for trace in curves.data] == [[0, 1, 1], [0, 1]]
