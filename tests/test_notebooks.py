"""The notebooks of docs/notebooks/ run from top to bottom, and are kept without what they put out.

`make test` runs them with the small settings of their metadata, without the cells tagged `long`; with
`WORKBENCH_LAWS=all` (`make notebooks`) they run as they are written.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

import workbench as wb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
WHOLE = os.environ.get("WORKBENCH_LAWS") == "all"


def cells_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def shown(value: object) -> str:
    """What a notebook shows of the last value of a cell."""
    html = getattr(value, "_repr_html_", None)
    return html() if html and not type(value).__module__.startswith("plotly") else repr(value)[:1000]


def run(source: str, names: dict[str, Any], where: str) -> str:
    """Run a cell; what it shows at its end."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return "" if last is None else shown(eval(compile(ast.Expression(last.value), where, "eval"), names))


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, model: wb.model.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wb, "load_model", lambda: model)
    quick = json.loads(path.read_text())["metadata"]["workbench"]["quick"]
    names: dict[str, Any] = {"__name__": path.stem}
    settings = 0
    for number, cell in enumerate(cells_of(path)):
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or ("long" in tags and not WHOLE):
            continue
        run("".join(cell["source"]), names, f"{path.name}[{number}]")
        if "parameters" in tags and not WHOLE:
            assert quick.keys() <= names.keys()
            names |= quick
            settings += 1
    assert WHOLE or settings == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in cells_of(path):
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "bake_and_save",
        "read_and_steer",
        "trace_a_circuit",
        "train_a_dictionary",
    ]
