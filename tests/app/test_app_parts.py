"""What the app's pages are made of: rules for their source, long work, escaping, figures."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pages import APP, quiet, start


def test_it_starts_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are those beside its script, and its images are there."""
    code = f"""
from streamlit import config
config._main_script_path = {str(APP / "main.py")!r}
print(*map(config.get_option, ("server.address", "browser.gatherUsageStats", "theme.primaryColor")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["localhost", "False", "#1f7a6d"]
    monkeypatch.chdir(tmp_path)
    quiet(start())


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


def test_pages_do_not_import_each_other() -> None:
    pages = {script.parent.name for script in APP.glob("*/page.py")}
    for path in (path for folder in (*pages, "shared") for path in (APP / folder).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        others = pages - {path.relative_to(APP).parts[0]}
        assert not {name for name in names if name.split(".")[0] in others}, path


def _drawn_by_streamlit(script: ast.Module) -> list[int]:
    """Lines of a script's bare values, which Streamlit draws on the page; the first docstring is none."""
    return [one.lineno for one in script.body[1:] if isinstance(one, ast.Expr) and not isinstance(one.value, ast.Call)]


def test_the_first_script_draws_no_docstring_of_a_constant() -> None:
    assert not _drawn_by_streamlit(ast.parse((APP / "main.py").read_text()))
    assert _drawn_by_streamlit(ast.parse("'a'\nA = 1\n'b'")) == [3]


@pytest.mark.parametrize("path", sorted(APP.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_page_states_constants_and_draws_in_its_script(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names = ast.walk(node.targets[0])
            assert all(one.id.isupper() for one in names if isinstance(one, ast.Name)), ast.unparse(node)
        else:
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) or getattr(node, "name", "") == "available"
    script = ast.parse((path.parent / "page.py").read_text())
    assert "show" in [node.name for node in script.body if isinstance(node, ast.FunctionDef)]
    assert not _drawn_by_streamlit(script)
    assert ast.unparse(script.body[-1]) == "if __name__ == '__main__':\n    show()"


def test_plain_text_has_no_markup() -> None:
    from workbench.core.text import plain

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


def test_no_time_is_left_where_the_work_goes_on_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs

    now, go = [100.0], threading.Event()
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    job = jobs.Job(lambda tell: go.wait(60))
    now[0] = 130.0
    job._tell(0.75, "Measuring")
    assert job.seconds_left == pytest.approx(10)
    now[0] = 136.0
    assert job.seconds_left == pytest.approx(4)
    for later in (139.5, 141.0, 500.0):
        now[0] = later
        assert job.seconds_left is None
    go.set()


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
    from workbench.measures.dose_response import DoseResponse

    odd = ["<script>", "\n", " $x$", "\x00", "", "a" * 99]
    bars = figures.token_bars(odd, [6.0, 5.0, 4.0, 3.0, 2.0, -1.0], [0.5, 1e-3, 1e-5, 1e-9, 0.0, 1.0])
    shown = json.dumps(bars.to_plotly_json(), default=str)
    assert "<script>" not in shown
    assert bars.layout.yaxis.ticktext[1] == "↵"
    moved = figures.token_changes([TokenChange(1, "<b>", 0.1, 0.9)])
    assert moved.layout.yaxis.ticktext[0] == "&lt;b&gt;"
    curve = figures.dose_curve(DoseResponse(" dog", [0.0, 1.0], [-3.0, -2.0], -4.0), at=1.0)
    assert curve.data[0].y[1] == pytest.approx(math.exp(-2))


def test_the_frame_is_drawn_without_the_heavy_libraries() -> None:
    """The frame of a page is drawn before torch is loaded."""
    assert len(list(APP.glob("*/page.py"))) >= 10
    code = "import sys, main\nfrom shared import pages\npages.discover()\n"
    code += "print(*{'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=APP, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
