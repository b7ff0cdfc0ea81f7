"""What a person does on a page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

from browsing import PATIENCE
from playwright.sync_api import Page, expect

expect.set_options(timeout=60_000)

DOG = "neurons.29.gate:808"
Visit = Callable[[str], Page]


def settled(page: Page) -> None:
    """Wait until the app has nothing more to do."""
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=PATIENCE)
    expect(page.locator("[data-stale=true]")).to_have_count(0, timeout=PATIENCE)


def generate(page: Page) -> list[str]:
    """Press Generate; the texts side by side once they are measured."""
    page.get_by_role("button", name="Generate").click()
    return written(page)


def written(page: Page) -> list[str]:
    expect(page.get_by_text("Tokens whose probability moved most")).to_be_visible(timeout=PATIENCE)
    settled(page)
    return [text.replace("\xa0", " ") for text in page.locator(".wb-text:has(.t)").all_inner_texts()]


def shorten(page: Page, to: int = 16) -> None:
    """Let the model write fewer tokens than the 64 it starts with; 8 are the fewest."""
    page.get_by_role("button", name="Settings").click()
    slider = page.get_by_role("slider", name="Tokens at most")
    slider.press("Home")
    for _ in range((to - 8) // 8):
        slider.press("ArrowRight")
    expect(slider).to_have_value(str(to))
    page.keyboard.press("Escape")
    settled(page)


def complaint(page: Page) -> str:
    """The one sentence that is shown, and nothing like a traceback."""
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_have_count(1, timeout=PATIENCE)
    assert "Traceback" not in page.locator("body").inner_text()
    return alert.inner_text()
