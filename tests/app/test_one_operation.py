"""An operation is one file: scripts, the page and the laws find it without an edit elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_app_surgery import choose, folder, visit  # noqa: F401 (a fixture)
from test_operation_laws import check_child

import workbench as wb
from workbench.surgery import operations
from workbench.surgery.registry import OPERATIONS, find_operations

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
        (Argument("factor", "Factor", 1.0, low=0.0),),
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


@pytest.mark.usefixtures("one_file")
def test_the_page_lists_it(folder: Path) -> None:  # noqa: F811
    page = choose(visit(folder), NAME)
    assert OPERATIONS[NAME].about in "".join(one.value for one in page.caption).replace("\\", "")


def test_without_its_file_nothing_knows_it() -> None:
    assert NAME not in OPERATIONS
