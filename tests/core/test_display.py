"""A result is short when it is printed, safe when it is drawn, and a table where it is asked for one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core import markup
from workbench.core.display import LONGEST, Rows, Shown, Tabular, cells, columns

BAD = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Inner(Shown):
    share: float
    words: list[str]


@dataclass(frozen=True)
class Outer(Tabular):
    name: str
    inner: Inner
    many: list[Inner]
    numbers: torch.Tensor
    hidden: str = field(default="unseen", repr=False)

    def records(self) -> Iterator[dict[str, Any]]:
        return columns(word=self.inner.words, place=range(len(self.inner.words)))


@dataclass
class Own(Shown):
    value: int

    def __repr__(self) -> str:
        return "its own"


def outer(name: str = "x") -> Outer:
    return Outer(name, Inner(0.123456789, [BAD, " dog"]), [Inner(1.0, [])] * 30, torch.zeros(3, 4))


def test_a_repr_says_sizes_and_not_contents() -> None:
    assert repr(outer()) == "Outer(name='x', inner=a Inner, many=[30 Inner], numbers=3 × 4 numbers)"
    assert repr(Inner(0.123456789, [" dog"])) == "Inner(share=0.123457, words=[␣dog])"
    assert len(repr(Outer("n" * 5000, Inner(1.0, ["w" * 900] * 900), [], torch.zeros(1)))) <= LONGEST
    assert repr(Own(3)) == "its own"


def test_html_shows_every_text_letter_by_letter() -> None:
    for drawn in (outer(BAD)._repr_html_(), Rows([outer(BAD)])._repr_html_(), markup.tokens([BAD], [1.0], unit=BAD)):
        assert "<script" not in drawn
        assert "&lt;script&gt;" in drawn
    assert "<script" not in markup.grid([(BAD, [(BAD, 0.5, BAD)])], [BAD]) + markup.table([{BAD: BAD}], BAD)
    assert "unseen" not in outer()._repr_html_()


def test_a_text_is_tinted_by_its_values() -> None:
    drawn = markup.tokens(["a", "b", "c", "d"], [2.0, -1.0, None, float("nan")], unit="nats")
    assert 'rgba(200, 100, 60, 0.800)" title="2 nats">a' in drawn
    assert 'rgba(31, 122, 109, 0.400)" title="-1 nats">b' in drawn
    assert "<span>c</span><span>d</span>" in drawn


def test_tables_have_the_rows_that_are_stated() -> None:
    assert outer().to_pandas().to_dict("list") == {"word": [BAD, " dog"], "place": [0, 1]}
    rows = Rows([outer("one"), outer("two")])
    table = rows.to_pandas()
    assert list(table.columns) == ["name", "inner_share", "inner_words", "many", "numbers"]
    assert list(table["inner_share"]) == [0.123456789] * 2
    assert list(cells(("layer", "head"), score=torch.arange(4).view(2, 2)))[2] == {"layer": 1, "head": 0, "score": 2}


def test_rows_are_a_list() -> None:
    rows = Rows([Inner(0.5, []), Inner(1.0, [])])
    assert rows == [Inner(0.5, []), Inner(1.0, [])]
    assert isinstance(rows[:1], Rows)
    assert rows[0] == Inner(0.5, [])
    assert repr(Rows()) == "[]"
    assert repr(Rows([1] * 9)).endswith("9 in all]")


def test_what_draws_is_imported_when_it_is_asked_for() -> None:
    script = (
        "import sys, workbench.core.display, workbench.core.progress;"
        "sys.exit(not {'pandas', 'plotly', 'tqdm'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
