"""The package as a stranger installs it: what it imports is declared, its wheel is whole, the command runs anywhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench import console
from workbench.core import shipped
from workbench.corpus import bundled

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["dependencies"])}
DOCS = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["optional-dependencies"]["docs"])}
DEV = {canonicalize_name(Requirement(one).name) for one in PROJECT["optional-dependencies"]["dev"]}


def pins(lines: str) -> dict[str, str]:
    """The versions that lines of constraints state, by name."""
    found = map(Requirement, [line for line in lines.splitlines()[1:] if line and not line.startswith("#")])
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in found}


def foreign_imports() -> set[str]:
    """Top-level modules that the package and the app import, other than the standard library and their own."""
    own = {"workbench", *(path.stem for path in (ROOT / "app").iterdir())}
    found = set()
    for path in [*(ROOT / "workbench").rglob("*.py"), *(ROOT / "app").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return found - own - set(sys.stdlib_module_names)


def test_every_import_is_declared() -> None:
    owners = packages_distributions()
    declared = set(NEEDED)
    undeclared = {
        name for name in foreign_imports() if not {canonicalize_name(one) for one in owners.get(name, [])} & declared
    }
    assert undeclared == set()


def test_the_pinned_set_lies_within_the_ranges() -> None:
    whole, _, site = (ROOT / "constraints.txt").read_text().partition("# the documentation site")
    pinned, more = pins(whole), pins(site)
    for name, needed in (NEEDED | DOCS).items():
        assert needed.specifier.contains((pinned | more)[name]), name
    assert set(NEEDED) | DEV <= set(pinned)
    assert set(DOCS) <= set(more)
    assert not set(pinned) & set(more)
    assert {name for name, one in pinned.items() if version(name).partition("+")[0] != one} == set()


def test_more_folders_come_before_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shipped.shipped("corpora", "*.parquet")
    assert whole == {"stories": ROOT / "data" / "corpora" / "stories.parquet"}
    (tmp_path / "corpora").mkdir()
    for name in ("mine", "stories"):
        (tmp_path / "corpora" / f"{name}.parquet").write_bytes(b"")
    monkeypatch.setenv(shipped.VARIABLE, f"{tmp_path}{os.pathsep}{tmp_path / 'nothing'}")
    assert bundled() == ["mine", "stories"]
    assert shipped.shipped("corpora", "*.parquet")["stories"].parent == tmp_path / "corpora"


def test_what_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import workbench as wb

    monkeypatch.setattr(shipped, "HOME", tmp_path)
    with pytest.raises(wb.dictionaries.DictionaryError, match=r"no folder resid-15; .* pip install workbench-lm-data"):
        wb.load_dictionary("resid-15")
    with pytest.raises(wb.corpus.CorpusError, match="'stories' is missing; name a folder"):
        wb.Corpus.load("stories")


def test_the_command_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["info"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^torch: +{re.escape(version('torch'))}$", said, re.M)
    assert "stories" in said
    with pytest.raises(SystemExit):
        console.main(["info", "more"])


def test_the_wheel_is_whole_and_runs_from_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        held.extractall(tmp_path / "installed")
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "workbench").rglob("*") if path.is_file()}
    ours |= {f"workbench/shipped/{path.relative_to(ROOT)}" for path in (ROOT / "app").rglob("*") if path.is_file()}
    assert {name for name in ours if "__pycache__" not in name} - names == set()
    assert not [name for name in names if name.startswith(("tests", "data", "workbench/shipped/data/dictionaries"))]
    assert wheel.stat().st_size < 5e6
    run = subprocess.run(
        [sys.executable, "-m", "workbench", "info"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"^corpora: +stories$", run.stdout, re.M)
    assert "pip install workbench-lm-data" in run.stdout
