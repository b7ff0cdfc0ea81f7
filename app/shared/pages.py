"""The pages of the app, discovered: each is one folder beside `main.py`.

A page's `__init__.py` states what the navigation needs and imports nothing heavy, since the frame is drawn before torch
is loaded:

- `TITLE`, `ICON`, `URL_PATH`, `ABOUT`: the name, the icon, the address, and the sentence below the name;
- `ORDER`: a number, the place in the navigation; the lowest is the page at the address `/`;
- `STATE` (optional): keys of the session that belong to the model and are dropped with it;
- `available()` (optional): whether the navigation lists the page now;
- `placeholder()` (optional): draws what stands in the page's place while the model opens.

Its `page.py` defines `show()`, which draws the page, and calls it where it is run as a script.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).resolve().parents[1]
SCRIPT = "page.py"


@dataclass(frozen=True)
class PageEntry:
    """What a page's folder states about it."""

    folder: str
    title: str
    icon: str
    url_path: str
    about: str
    order: float
    state: Sequence[str]
    available: Callable[[], bool]
    placeholder: Callable[[], None]


def discover() -> list[PageEntry]:
    """All pages in the order of the navigation.

    Raises:
        AttributeError: a folder does not state one of the constants.
    """
    folders = [script.parent.name for script in APP.glob(f"*/{SCRIPT}")]
    return sorted(map(_entry, folders), key=lambda page: (page.order, page.folder))


def script(folder: str) -> str:
    """The script of the page in a folder, as `st.Page`, `st.page_link` and `st.switch_page` take it."""
    return f"{folder}/{SCRIPT}"


def model_state() -> list[str]:
    """The keys of the session, of all pages, that belong to a model."""
    return [key for page in discover() for key in page.state]


def _entry(folder: str) -> PageEntry:
    package = importlib.import_module(folder)
    return PageEntry(
        folder,
        package.TITLE,
        package.ICON,
        package.URL_PATH,
        package.ABOUT,
        package.ORDER,
        getattr(package, "STATE", ()),
        getattr(package, "available", lambda: True),
        getattr(package, "placeholder", lambda: None),
    )
