"""The tables and sentences of docs/models.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SIGNS = {"right": "✓", "none": "–"}
"""Cells of a result; a refusal has the number of its sentence."""


def tables() -> dict[str, dict[str, dict[str, str]]]:
    """The tables by the head of their first column: for each row what each capability is."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found[head[0]] = {row[0].strip("`"): dict(zip(head[2:], row[2:], strict=True)) for row in rows}
    return found


def check(cell: str, result: str, sentence: str) -> None:
    """Assert that a cell says what happened."""
    if result == "refused":
        sentences = dict(re.findall(r"^(\d+)\. (.*)$", PAGE.read_text(), re.M))
        assert sentences.get(cell) == sentence
    else:
        assert cell == SIGNS[result], f"it is {result} now: {sentence}"
