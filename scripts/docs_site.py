"""The pages of the documentation site that are made from other files: a hook of MkDocs, named in `mkdocs.yml`.

The pages of `api/` list the public names of each room, as the room's `__init__.py` imports them; mkdocstrings writes
their signatures and docstrings. `contributing.md` is `CONTRIBUTING.md`. In the navigation a folder stands for its
pages, and "*" for pages that nothing else names: a new page is one file. Nothing of Workbench is imported.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "workbench"
ICON = "images/icon.svg"
"""The app's icon on the site."""
FACE = "api/wb.md"
"""The page of the package, before those of the rooms; `index` is a room."""
REST = "*"
FOLDERS = ("decisions/", "api/")
"""Entries of the navigation that stand for all pages of a folder."""


@functools.cache
def tree(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text())


def imported(file: Path) -> dict[str, str]:
    """Where each name is defined that a file imports under the same name, such as `workbench.lens.grid.LensGrid`."""
    package = ".".join(file.parent.relative_to(ROOT).parts)
    names = {}
    for node in tree(file).body:
        if isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}" if node.level else str(node.module)
            names |= {one.name: f"{module}.{one.name}" for one in node.names if one.asname == one.name}
    return names


def rooms() -> dict[str, dict[str, str]]:
    """The public names of each room that offers some, and where they are defined."""
    found = {file.parent.name: imported(file) for file in sorted(PACKAGE.glob("*/__init__.py"))}
    return {room: names for room, names in found.items() if names}


def stands_alone(where: str) -> bool:
    """Whether mkdocstrings finds a name; it does not find constants of which one statement defines several."""
    module, _, name = where.rpartition(".")
    if not name.isupper():
        return True
    path = ROOT.joinpath(*module.split("."))
    body = tree(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).body
    lines = [
        node.targets[0] for node in body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
    ]
    return not any(isinstance(one, ast.Name) and one.id == name for line in lines for one in line.elts)


def room_page(room: str, names: dict[str, str]) -> str:
    """The page of a room: what it is for, then each name; constants come last."""
    about = ast.get_docstring(tree(PACKAGE / room / "__init__.py")) or ""
    ordered = sorted(names, key=lambda name: (name.isupper(), name.lower()))
    alone = [f"::: {names[name]}" for name in ordered if stands_alone(names[name])]
    others = [f"`{name}`" for name in ordered if not stands_alone(names[name])]
    last = [f"## Constants\n\n{', '.join(others)}."] * bool(others)
    return "\n\n".join([f"# {room}", f"`wb.{room}`: {about}", *alone, *last]) + "\n"


def face_page() -> str:
    """The page of the package: its own names, and the rooms."""
    face = {name: where.split(".") for name, where in imported(PACKAGE / "__init__.pyi").items()}
    here = rooms()
    rows = [f"| `wb.{name}` | [`{parts[1]}`]({parts[1]}.md) |" for name, parts in face.items() if parts[1] in here]
    lists = [f"- [`wb.{room}`]({room}.md): {', '.join(f'`{name}`' for name in names)}" for room, names in here.items()]
    top = "# API\n\nThe names used most stand in `wb` itself; all else is reached through its room: `wb.surgery.prune`."
    table = "\n".join(["| name | in the room |", "|---|---|", *sorted(set(rows))])
    return "\n\n".join([top, table, "## Rooms", "\n".join(lists)]) + "\n"


@functools.cache
def made_pages() -> dict[str, str]:
    """The text of each page that no file of `docs/` holds, by its path there."""
    pages = {FACE: face_page(), "contributing.md": (ROOT / "CONTRIBUTING.md").read_text()}
    return pages | {f"api/{room}.md": room_page(room, names) for room, names in rooms().items()}


def named(nav: list[Any]) -> set[str]:
    """The entries of a navigation, at every depth."""
    inner = [next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in nav]
    return set().union(*(named(one) if isinstance(one, list) else {one} for one in inner))


def pages_of(entry: str, others: set[str]) -> list[str]:
    """The paths of the pages that a folder stands for; for "*" those of `docs/` itself that are in no other entry."""
    folder = "" if entry == REST else entry
    kept = [f"{folder}{file.name}" for file in (ROOT / "docs" / folder).glob("*.md")]
    made = [path for path in made_pages() if folder and path.startswith(folder)]
    return sorted({*made, *kept} - others, key=lambda path: (path != FACE, path))


def whole(nav: list[Any], others: set[str] | None = None) -> list[Any]:
    """A navigation in which folders and "*" are replaced by their pages."""
    others = others or named(nav)
    out: list[Any] = []
    for entry in nav:
        ((title, inner),) = entry.items() if isinstance(entry, dict) else [("", entry)]
        if isinstance(inner, list):
            inner = whole(inner, others)
        elif inner == REST or inner in FOLDERS:
            inner = pages_of(inner, others)
        out += [{title: inner}] if title else inner if isinstance(inner, list) else [inner]
    return out


def on_config(config: Any) -> Any:
    """MkDocs calls this with its configuration: the navigation gets the pages of folders."""
    config.nav = whole(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this with the files of the site: the pages that are made are added."""
    from mkdocs.structure.files import File

    for path, text in made_pages().items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, ICON, abs_src_path=str(ROOT / "app" / "icon.svg")))
    return files
