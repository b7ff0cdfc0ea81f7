"""What is cut on a page in a real browser: hidden text, cells of tables, words over many lines, a page too wide.

A table is drawn on a canvas; `WATCH` notes what is drawn where, and the area that cells leave it.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

WIDTHS = (1280, 390)
"""Pixels of a small laptop and of a phone."""

HERE = Path(__file__).parent
WATCH = (HERE / "cut_off_watch.js").read_text()
"""A script that runs before the page's own."""
READ = (HERE / "cut_off_read.js").read_text()


def cut_off(page: Page) -> list[str]:
    """What is cut on the page: one line each, empty if nothing is.

    On a screen as narrow as a phone's a table, and a row of choices, may be wider than the page: it scrolls.
    """
    size = page.viewport_size
    assert size is not None
    page.evaluate("window.wbDrawn?.clear()")
    for width in (size["width"] - 1, size["width"]):  # draws the tables again
        page.set_viewport_size({"width": width, "height": size["height"]})
        page.wait_for_timeout(250)
    return page.evaluate(READ, size["width"] < 640)
