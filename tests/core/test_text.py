"""Text for figures: what Plotly shows is the text itself."""

from __future__ import annotations

import html
import re

import pytest

from workbench.core.text import figure_text

KNOWN = {"amp", "lt", "gt", "#36"}
"""Names of characters that Plotly replaces; it shows `&quot;` and `&apos;` letter by letter."""


@pytest.mark.parametrize("text", ['say "dog"', "it's", "<b>bold</b>", "$x^2$", "a & b", "&quot;", "&lt;"])
def test_a_figure_shows_the_text_itself(text: str) -> None:
    shown = figure_text(text)
    assert set(re.findall(r"&([^;]+);", shown)) <= KNOWN
    assert html.unescape(shown) == text
    assert "<" not in shown
    assert "$" not in shown
