"""Notes, intervals and pages that all studies share."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from analyses.shared import report


def test_wilson_gives_the_published_intervals() -> None:
    half = report.wilson(5, 10)
    assert (half["k"], half["n"], half["rate"]) == (5, 10, 0.5)
    assert (half["low"], half["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert (report.wilson(0, 10)["low"], report.wilson(0, 10)["high"]) == pytest.approx((0, 0.2775), abs=1e-4)
    assert (report.wilson(10, 10)["low"], report.wilson(10, 10)["high"]) == pytest.approx((0.7225, 1), abs=1e-4)
    assert math.isnan(report.wilson(0, 0)["rate"])


def test_notes_spare_what_is_known_and_survive_a_broken_line(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, float]:
        made.append(1)
        return {"x": math.nan, "y": 0.1}

    notes = report.Notes(tmp_path / "notes.jsonl", ["a", 1])
    notes.get("one", make)
    notes.get("one", make)
    assert len(made) == 1
    with open(notes.file, "a") as file:
        file.write('["two", {"x": 1')
    again = report.Notes(notes.file, ["a", 1])
    assert again.get("one", make)["y"] == 0.1
    assert len(made) == 1
    again.get("two", make)
    assert len(made) == 2
    assert set(report.Notes(notes.file, ["a", 1]).known) == {"one", "two"}
    assert report.Notes(notes.file, ["a", 2]).known == {}, "another stamp must not use these notes"


def test_a_page_needs_no_network_and_escapes(tmp_path: Path) -> None:
    page = report.Page(tmp_path, "A <b>title</b>", "lead")
    page.figure("one", go.Figure(go.Scatter(y=[1, 2], name="</script><script>alert(1)")), "A figure.")
    page.add(report.table(["word", "n"], [["<script>", 1], [report.tokens([" <dog>"]), 2]]))
    text = page.write(report.provenance(_Named(), 0)).read_text()
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    assert not re.search(r'(src|href)="(https?:)?//', own)
    assert "</script><script>alert" not in own
    assert "&lt;script&gt;" in text
    assert "␣&lt;dog&gt;" in text
    assert go.Figure(json.loads((tmp_path / "one.json").read_text())).data[0].name == "</script><script>alert(1)"


class _Named:
    name, hash = "tiny", "0" * 64
