"""Every Python example of README and the documentation runs, page by page from top to bottom, on tiny models.

Numbers that only cost time are smaller here. A block that can't run says why in a comment above it; its names are
looked up all the same.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from docs_world import World, enter, small_world  # noqa: F401

import workbench as wb

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
PAGES = [
    path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if "```python" in path.read_text()
]
SMALLER = {
    r"tokens=1_000_000|tokens=100_000_000": "tokens=1_024, batch_size=512",
    r"tokens=10_000_000": "tokens=1_024",
    r"tokens=8192": "tokens=200, context=32",
    r"d_in=4096": "d_in=40",
    r"width=(4608|16_384), k=32": "width=48, k=4",
    r"4608, 32\)": "48, 4)",
    r"(load\(\"stories\"\)), 0.01": r"\1, 0.5, 200, context=32, resamples=9",
    r"\.certify\((corpus)?\)": '.certify(wb.Corpus.load("stories"), 60, context=32)',
    r"ioi\(model, 10\)": "ioi(model, 2)",
    r"control=True\)": "control=True, max_new_tokens=3)",
    r"(chat_prompt\(\"Where are you\?\"\), edits)": r"\1, 3",
    r"max_latents=64": "max_latents=8",
    r"france|graph, 10\)": "graph, 2)",
    r"blocks\.15\.": "blocks.1.",
    r"blocks\.2[09]\.": "blocks.2.",
    r"neurons\.29\.gate:808": "neurons.2.gate:8",
    r"range\(10, [13][06]\)": "range(1, 3)",
    r"tokens\[20\]": "tokens[2]",
    r"layers=\[2[03]\]": "layers=[2]",
    r"tokens=100_000, folder": "tokens=100, context=32, folder",
    r"prompts=100, context=64": "prompts=2, context=32",
    r"swap\((.*), \[15\]\)": r"swap(\1, [1])",
    r"\" Rome\", 15\)": '" Rome", 1)',
    r"measure_lens\(model, lens, unseen\)": "measure_lens(model, lens, unseen, tokens=60, context=32)",
    r"(head\(|Head\(|model, )2[03], 4": r"\g<1>2, 4",
}
"""Numbers of the examples as patterns, and those that a tiny model has in their place."""


def smaller(code: str) -> str:
    for large, small in SMALLER.items():
        code = re.sub(large, small, code)
    return code


def blocks(path: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the reason why it is not run; empty where it is."""
    return [(one["code"], one["reason"] or "") for one in BLOCK.finditer(path.read_text())]


def cells(path: Path) -> list[str]:
    """The code in the last column of the tables of a page, without what is left out of a call."""
    rows = re.findall(r"^\|.*\| (.+?) \|$", path.read_text(), re.M)
    return [code for row in rows for code in re.findall(r"^`([^`]+)`", row) if "…" not in code]


def look_up(code: str) -> None:
    """Every dotted name that begins with `wb` leads somewhere."""
    for node in ast.walk(ast.parse(code)):
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"wb(\.\w+)+", dotted):
            found: Any = wb
            for part in dotted.split(".")[1:]:
                found = getattr(found, part)


def run(code: str, scope: dict[str, Any], where: str) -> None:
    exec(compile(code, where, "exec"), scope)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_examples_of_a_page_run(
    path: Path, world: World, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(world, tmp_path, monkeypatch)
    scope: dict[str, Any] = {"__name__": "example"}
    for number, (code, reason) in enumerate(blocks(path), 1):
        if reason:
            look_up(code)
        else:
            run(smaller(code), scope, f"{path.name}, block {number}")


def test_what_stands_beside_other_tools_runs(
    world: World, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(world, tmp_path, monkeypatch)
    page = ROOT / "docs" / "other-tools.md"
    scope: dict[str, Any] = {"__name__": "example"}
    for code, _ in blocks(page):
        run(smaller(code), scope, page.name)
    point = scope["point"]
    wb.directions.Direction({point: scope["model"].capture("sad", [point])[point][0, -1]}, "sad").save("sad.gguf")
    tried = cells(page)
    assert len(tried) > 40
    for code in tried:
        run(smaller(code), scope, code)


def test_every_number_that_is_made_smaller_stands_somewhere() -> None:
    text = "".join(path.read_text() for path in PAGES)
    assert [large for large in SMALLER if not re.search(large, text)] == []
