"""Nothing on a page is cut at the width of a small laptop and of a phone.

The suite looks at one quick page, which `WORKBENCH_SEED` chooses; with `WORKBENCH_LAWS` set it looks at all, each
brought to its results.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from browsing import PATIENCE, Server
from cut_off import WATCH, WIDTHS, cut_off
from in_browser import settled
from journeys import JOURNEYS
from playwright.sync_api import Browser, BrowserContext, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.real]
QUICK = ["browse?feature=neurons.29.gate:808", "settings", "steer?feature=neurons.29.gate:808", "train"]
"""Journeys that take seconds."""
SAMPLE = random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(QUICK, 1)
CHOSEN = list(JOURNEYS) if os.environ.get("WORKBENCH_LAWS") else SAMPLE


@pytest.fixture(scope="module")
def watched(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": WIDTHS[0], "height": 1200}, reduced_motion="reduce")
    made.add_init_script(WATCH)
    yield made
    made.close()


def test_every_page_has_a_journey() -> None:
    from shared import pages

    addresses = {address.partition("?")[0] for address in JOURNEYS}
    assert {page.url_path for page in pages.discover()} - addresses == set()


@pytest.mark.parametrize("address", CHOSEN)
def test_nothing_is_cut(watched: BrowserContext, app: Server, address: str) -> None:
    page = watched.new_page()
    page.goto(f"{app.url}/{address}", timeout=PATIENCE)
    expect(page.locator("h1")).to_be_visible(timeout=PATIENCE)
    settled(page)
    JOURNEYS[address](page)
    assert _cut(page) == {}
    page.close()


def test_what_is_cut_is_seen(watched: BrowserContext) -> None:
    page = watched.new_page()
    page.set_content(
        "<div data-testid=stMain><div style='width:80px;overflow:hidden;white-space:nowrap'>a line that is cut</div>"
        "<p style='width:60px;overflow-wrap:anywhere'>blocks.15.hook_resid_post.and.more</p>"
        "<input value='a value that is too long for its box' style='width:60px'><p>whole</p></div>"
    )
    found = cut_off(page)
    assert [line.partition(":")[0] for line in found] == ["text", "broken", "input"]
    page.close()


def _cut(page: Page) -> dict[int, list[str]]:
    """What is cut at each width where something is."""
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1200})
        settled(page)
        if lines := cut_off(page):
            found[width] = lines
    return found
