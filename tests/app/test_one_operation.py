"""An operation is one file: scripts, the page and the laws find it without an edit elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pages import quiet, run_code, script
from test_app_surgery import choose, folder, tried, visit  # noqa: F401 (a fixture)
from test_interrupted import check_stops
from test_operation_laws import check_child, check_neutral, neutral

import workbench as wb
from workbench.surgery import operations
from workbench.surgery.registry import OPERATIONS, Argument, Operation, find_operations, register

pytestmark = pytest.mark.usefixtures("tiny_cache")

NAME = "scale_norms"
FILE = '''
from workbench.model.weights import parameters_of
from workbench.surgery.child import make_child
from workbench.surgery.registry import Argument, Operation, register


def scale_norms(model, *, factor, progress=None, cancel=None):
    """A child whose norms have other weights."""
    old = parameters_of(model.network.module)
    tensors = {name: factor * tensor for name, tensor in old.items() if "norm" in name}
    return make_child(model, tensors, {"operation": "scale_norms", "factor": factor})


register(
    Operation(
        "scale_norms",
        "Scale norms",
        "Multiplies the weights of all norms.",
        (Argument("factor", "Factor", 1.0, low=0.0, neutral=1.0),),
        scale_norms,
    )
)
'''


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file in a folder beside the product's own operations."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / f"{NAME}.py").write_text(FILE)
    monkeypatch.setattr(operations, "__path__", [*operations.__path__, str(tmp_path / "more")])
    find_operations()
    yield
    del OPERATIONS[NAME], sys.modules[f"{operations.__name__}.{NAME}"]


@pytest.mark.usefixtures("one_file")
def test_scripts_and_laws_find_it(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    child = wb.surgery.apply_operation(llama, NAME, factor=2.0)
    assert {name for name in child.own if "norm" not in name} == set()
    assert child.history[-1]["factor"] == 2.0
    check_child(NAME, llama, tmp_path)
    check_stops(NAME, llama, tmp_path)
    assert neutral(NAME) == [{"factor": 1.0}]
    check_neutral(NAME, "apertus", tmp_path)


@pytest.mark.usefixtures("one_file")
def test_an_operation_says_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = replace(OPERATIONS[NAME], arguments=(Argument("factor", "Factor", 1.0, low=0.0),))
    monkeypatch.setitem(OPERATIONS, NAME, silent)
    with pytest.raises(wb.surgery.SurgeryError, match=r"scale_norms does not say where .* neutral=VALUE, or"):
        check_neutral(NAME, "llama", tmp_path)
    monkeypatch.setitem(OPERATIONS, NAME, replace(silent, neutral=({"factor": 2.0},)))
    with pytest.raises(AssertionError, match="norm"):
        check_neutral(NAME, "llama", tmp_path)
    monkeypatch.setitem(OPERATIONS, NAME, replace(silent, neutral="norms have to grow"))
    assert neutral(NAME) == []


@pytest.mark.usefixtures("one_file")
def test_the_page_lists_it(folder: Path) -> None:  # noqa: F811
    page = choose(visit(folder), NAME)
    assert OPERATIONS[NAME].about in "".join(one.value for one in page.caption).replace("\\", "")


@pytest.fixture
def shift_rows() -> Iterator[list[dict]]:
    """An operation with a direction and with arguments that may be left out; holds the arguments of every call."""
    calls: list[dict] = []

    def run(
        model: wb.model.LanguageModel,
        *,
        direction: tuple[float, ...],
        other: tuple[float, ...] | None,
        amount: float | None,
        rounds: int | None,
        progress: object = None,
        cancel: object = None,
    ) -> wb.surgery.Child:
        calls.append({"direction": direction, "other": other, "amount": amount, "rounds": rounds})
        return wb.surgery.apply_operation(model, "prune", sparsity=0.5)

    arguments = (
        Argument("direction", "Direction", (), "direction"),
        Argument("other", "Other direction", None, "direction"),
        Argument("amount", "Amount", None, low=0.0),
        Argument("rounds", "Rounds", None, "whole", low=1),
    )
    register(Operation("shift_rows", "Shift rows", "Shifts rows.", arguments, run))
    yield calls
    del OPERATIONS["shift_rows"]


def test_directions_and_arguments_that_are_left_out(folder: Path, shift_rows: list[dict]) -> None:  # noqa: F811
    page = choose(visit(folder), "shift_rows")
    assert [page.number_input(key=f"surgery shift_rows {name}").value for name in ("amount", "rounds")] == [None, None]
    assert page.button(key="surgery try").disabled
    page.text_input(key="surgery shift_rows direction").set_value("neurons.1.post:5").run()
    assert not quiet(page).button(key="surgery try").disabled
    quiet(tried(page))
    model = wb.load_model(str(folder))
    direction = tuple(model.network.neuron_weights(1, "down")[5].tolist())
    assert shift_rows == [{"direction": direction, "other": None, "amount": None, "rounds": None}]
    page.number_input(key="surgery shift_rows amount").set_value(0.5)
    page.number_input(key="surgery shift_rows rounds").set_value(2)
    page.text_input(key="surgery shift_rows other").set_value("neurons.0.post:3").run()
    quiet(tried(page))
    assert shift_rows[-1]["other"] == tuple(model.network.neuron_weights(0, "down")[3].tolist())
    assert (shift_rows[-1]["amount"], shift_rows[-1]["rounds"]) == (0.5, 2)
    quiet(page.button(key="surgery keep").click().run())
    run_code(script(page, "shift_rows").partition("print(")[0])
    assert shift_rows[-1] == shift_rows[-2]


def test_without_its_file_nothing_knows_it() -> None:
    assert NAME not in OPERATIONS
