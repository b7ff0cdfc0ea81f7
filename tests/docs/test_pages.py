"""Every link, anchor and image of README and the documentation is there, and every page is in the site's navigation.

The site itself is built by `make docs`, strictly; these tests need no MkDocs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
CODE = re.compile(r"`[^`\n]*`")
"""A span of code; what looks like a link in it is none."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", path.read_text())


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings that GitHub and the site agree on."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = re.sub(r"[^\w\s-]", "", words).strip()
        here, there = re.sub(r"\s", "-", kept), re.sub(r"[-\s]+", "-", kept)
        found |= {here} if here == there else set()
    return found


def links(path: Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", prose(path))):
        if not re.match(r"[a-z]+:", target):
            yield target


def broken(path: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    wrong = []
    for target in links(path):
        place, _, anchor = target.partition("#")
        there = (path.parent / place).resolve() if place else path
        if not there.is_file() or (DOCS in path.parents and DOCS not in there.parents):
            wrong.append(target)  # the site holds the files of docs/ alone
        elif anchor and anchor not in slugs(there):
            wrong.append(target)
    return wrong


def hook() -> Any:
    """The module that makes pages of the site, as MkDocs loads it."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(inner, list):
            yield from listed(inner)
        else:
            yield inner


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_every_page_is_in_the_navigation_once() -> None:
    site = hook()
    entries = list(listed(site.whole(CONFIG["nav"])))
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES} | set(site.made_pages())
    assert sorted(entries) == sorted(pages)


def test_every_room_with_public_names_has_its_page() -> None:
    site = hook()
    made, rooms = site.made_pages(), site.rooms()
    assert {f"api/{room}.md" for room in rooms} | {site.FACE, "contributing.md"} == set(made)
    for room, names in rooms.items():
        shown = re.findall(r"^::: [\w.]+\.(\w+)$", made[f"api/{room}.md"], re.M)
        shown += re.findall(r"`(\w+)`", made[f"api/{room}.md"].partition("## Constants")[2])
        assert sorted(shown) == sorted(names)
    assert "| `wb.read_lens` | [`lens`](lens.md) |" in made[site.FACE]
    assert "::: workbench.lens.reading.read_lens" in made["api/lens.md"]
    assert "`AGAINST`" in made["api/figures.md"].partition("## Constants")[2]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](laws.md)", []),
        ("[a](laws.md#laws) and `[b](nowhere.md)`", []),
        ("```\n[a](nowhere.md)\n```", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("![a](images/nowhere.png)", ["images/nowhere.png"]),
        ("[a](laws.md#no-such-law)", ["laws.md#no-such-law"]),
        ("# Here\n[a](#here) [b](#there)", ["#there"]),
        ("[a](../README.md)", ["../README.md"]),
    ],
)
def test_a_broken_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wrong: list[str]) -> None:
    monkeypatch.setitem(globals(), "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Workbench")
    (tmp_path / "docs" / "laws.md").write_text("# Laws\n")
    (tmp_path / "docs" / "page.md").write_text(text)
    assert broken(tmp_path / "docs" / "page.md") == wrong


def test_what_the_page_on_trouble_quotes_is_said_somewhere() -> None:
    """Quoted words stand in the source: in one piece, or in pieces where a name or number stands between them."""
    source = "".join(path.read_text() for path in sorted((ROOT / "workbench").rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    quotes = re.findall(r'"([^"]+)"', "".join(re.findall(r"^\| (.+?) \|", prose(DOCS / "trouble.md"), re.M)))
    assert len(quotes) > 20
    for quote in quotes:
        for piece in quote.split("…"):
            assert piece.strip() in joined, quote
