"""The table of published results is what the results in `docs/results` give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from analyses.shared import published
from analyses.shared.discovery import study_folders
from analyses.shared.study import Row


def test_the_page_agrees_with_the_results() -> None:
    text = published.PAGE.read_text()
    made = published.with_table(text, published.table_of(published.rows_of_results()))
    assert made == text, "run `python -m analyses published`"


def test_writing_it_again_changes_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "published.md"
    text = published.PAGE.read_text()
    copy.write_text(text.replace(published.BEGIN, f"{published.BEGIN}\nsomething old"))
    published.write_page(copy)
    assert copy.read_text() == text
    copy.write_text("no comments here")
    with pytest.raises(ValueError, match="needs the lines"):
        published.write_page(copy)


def test_every_study_has_results_and_rows() -> None:
    rows = published.rows_of_results()
    assert set(rows) == set(study_folders())
    assert all(rows.values())


def test_rows_follow_the_figures(tmp_path: Path) -> None:
    """No figure of a row is typed in: another result gives another row."""
    for name in study_folders():
        before = published.rows_of_results()[name]
        summary = json.loads((published.RESULTS / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(_moved(summary)))
        after = published.rows_of_results(tmp_path)[name]
        for old, new in zip(before, after, strict=True):
            assert old.claim == new.claim or name == "circuits"
            assert old.here != new.here, f"{name}: {old.here}"


def _moved(value: object, key: str = "") -> object:
    """The same data with every measured fraction changed; settings and whole numbers stay."""
    if isinstance(value, dict):
        return {
            name: inner if name in ("plan", "rule", "share") else _moved(inner, name) for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_moved(inner, key) for inner in value]
    if key in ("k", "specialised", "beats_rise") and isinstance(value, int) and not isinstance(value, bool):
        return value + 1
    return value * 1.13 + 0.01 if isinstance(value, float) and key not in ("ratio", "p") else value


def test_the_table_is_sound_markdown() -> None:
    table = published.table_of(
        {"one": [Row("A (2020)", "a | b", "1\n2"), Row("A (2020)", "c", "d"), Row("B", "e", "f")]}
    )
    assert table.splitlines()[2:] == [
        "| `one`, A (2020) | a \\| b | 1 2 |",
        "|  | c | d |",
        "| the same, B | e | f |",
    ]
    for line in published.table_of(published.rows_of_results()).splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 4


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ([0.321, 0.4], ".2f", "0.32 to 0.40"),
        ([0.5, 0.5001], ".2f", "0.50"),
        ([1.0, 0.75], ".0%", "75 to 100%"),
        ([-0.28, 0.59], ".2f", "-0.28 to 0.59"),
    ],
)
def test_spans(values: list[float], form: str, text: str) -> None:
    assert published.span(values, form) == text


def test_lists() -> None:
    assert published.listed([0.5]) == "0.500"
    assert published.listed([0.5, 0.25, 1], ".2f") == "0.50, 0.25 and 1.00"
