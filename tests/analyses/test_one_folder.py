"""A study is one folder: its command, help, report and rows of published results need no edit elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import analyses
from analyses.shared import published
from analyses.shared.command import SHARED, build_parser, main
from analyses.shared.discovery import load_study, sentence_of, study_folders
from analyses.shared.study import Study

INIT = '''"""Count the words of a text.

More about it.
"""

from analyses.counting.study import STUDY as STUDY
'''
STUDY = """
from analyses.shared.report import Page
from analyses.shared.study import Outcome, Row, Study


def run(settings):
    words = 1 if settings.smallest else len(settings.text.split())
    page = Page(settings.out, "Counting", "A study.")
    results = {"words": words, "seed": settings.seed, "text": settings.text}
    written = page.write({"versions": {}})
    return Outcome(results, {"words": words}, written)


def add_options(parser):
    parser.add_argument("--text", default="a b c")


STUDY = Study(run, lambda summary: [Row("Nobody (2020)", "few", f"{summary['words']} words")], ("seed",), add_options)
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study in a folder of its own; the working directory is another one."""
    folder = tmp_path / "studies" / "counting"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(INIT)
    (folder / "study.py").write_text(STUDY)
    monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(folder.parent)])
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("analyses.counting")]:
        del sys.modules[name]
    vars(analyses).pop("counting", None)


def test_a_new_study_is_one_folder(counting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_folders()["counting"] == counting
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Count the words of a text." in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["counting", "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--out", "--summary", "--smallest", "--seed", "--text"))
    assert "--real" not in shown
    main(["counting", "--text", "one two", "--seed", "3", "--out", "here", "--summary", "short.json"])
    assert json.loads(Path("here/results.json").read_text()) == {"words": 2, "seed": 3, "text": "one two"}
    assert json.loads(Path("short.json").read_text()) == {"words": 2}
    assert Path("here/index.html").exists()
    main(["counting", "--smallest"])
    assert json.loads(Path("reports/counting-smallest/results.json").read_text())["words"] == 1


def test_its_row_comes_into_the_table_with_its_results(counting: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    assert published.rows_of_results(results) == {}
    (results / "counting.json").write_text('{"words": 7}')
    table = published.table_of(published.rows_of_results(results))
    assert table.splitlines()[2:] == ["| `counting`, Nobody (2020) | few | 7 words |"]


@pytest.mark.parametrize("name", sorted(study_folders()))
def test_every_study_declares_itself(name: str) -> None:
    study = load_study(name)
    assert isinstance(study, Study)
    assert set(study.shared) <= set(SHARED)
    assert sentence_of(study_folders()[name]).endswith(".")
    settings = build_parser(name).parse_args([name, "--smallest"])
    assert settings.study is study


def test_what_ships_is_not_trained_on_smallest_settings() -> None:
    with pytest.raises(SystemExit, match="leave out --train"):
        main(["tokfsm", "--smallest", "--train"])


def test_a_study_that_needs_real_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs --real"):
        main(["train_defaults", "--out", str(tmp_path)])
