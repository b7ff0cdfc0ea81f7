"""The app in a real browser: from a word or a latent to a changed answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browsing import PATIENCE
from in_browser import Visit, generate, settled, shorten, written
from playwright.sync_api import expect

import workbench as wb

pytestmark = [pytest.mark.browser, pytest.mark.real]


def test_from_a_word_to_a_changed_answer(visit: Visit) -> None:
    page = visit("/")
    box = page.get_by_placeholder("dog")
    expect(box).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("The most specialised neurons")).to_be_visible(timeout=PATIENCE)
    box.fill("dog")
    expect(page.get_by_text("“dog” among")).to_be_visible()
    settled(page)
    page.locator(".dvn-scroller").click(position={"x": 16, "y": 52})  # the box before the first hit
    expect(page.get_by_role("heading", name="Layer 29, neuron 808, gate")).to_be_visible()
    expect(page).to_have_url(re.compile("feature=neurons.29.gate"))
    expect(page.get_by_text("Most similar neurons")).to_be_visible()

    page.get_by_role("button", name="Steer this neuron").click()
    expect(page.get_by_role("link", name="Layer 29, neuron 808")).to_be_visible()
    shorten(page)
    slider = page.get_by_role("slider", name="Set to")
    expect(slider).to_have_value("20")
    slider.press("ArrowRight")
    expect(slider).to_have_value("20.5")
    settled(page)
    plain, edited = generate(page)
    assert plain
    assert edited
    assert plain != edited
    assert page.locator(".wb-text .t").first.get_attribute("data-value").startswith("KL ")

    page.get_by_role("link", name="Browse").click()  # what was typed is still there
    expect(page.get_by_placeholder("dog")).to_have_value("dog")
    expect(page.get_by_role("heading", name="Layer 29, neuron 808, gate")).to_be_visible()
    page.get_by_role("link", name="Steer").click()
    expect(page.get_by_role("slider", name="Set to")).to_have_value("20.5")
    assert written(page) == [plain, edited]


def test_from_a_latent_to_its_label_and_its_effect(visit: Visit, shelf: Path) -> None:
    page = visit("/?feature=random-15:5")
    expect(page.get_by_role("heading", name="random-15, latent 5")).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".wb-examples .p").first).to_be_visible()
    expect(page.get_by_text("Nearest latents")).to_be_visible()
    settled(page)
    page.get_by_role("textbox", name="Label").fill("<i>rivers</i>")  # without Enter
    settled(page)
    index = wb.open_index(shelf / "dictionaries" / "random-15" / "index")
    for _ in range(100):
        if index.feature(5).label == "<i>rivers</i>":
            break
        page.wait_for_timeout(100)
    assert index.feature(5).label == "<i>rivers</i>"

    page.get_by_role("radio", name="regular expression").click()
    box = page.get_by_placeholder("New (York)")
    box.fill("New (York)")
    box.press("Enter")
    expect(page.get_by_text("best first")).to_be_visible()
    settled(page)

    page.get_by_role("button", name="Steer this latent").click()
    expect(page.get_by_role("link", name="random-15, latent 5")).to_be_visible(timeout=PATIENCE)
    shorten(page, 16)
    slider = page.get_by_role("slider", name="Set to")
    slider.press("End")
    settled(page)
    plain, edited = generate(page)
    assert plain != edited

    page.get_by_role("link", name="Inspect").click()
    expect(page.get_by_text("Colour by")).to_be_visible(timeout=PATIENCE)
    settled(page)
    assert page.locator(".wb-text .t").first.get_attribute("data-value").startswith("random-15:")
    page.locator(".dvn-scroller").first.click(position={"x": 16, "y": 52})  # the box before the first feature
    expect(page.get_by_role("heading", name=re.compile(r"random-15, latent \d+"))).to_be_visible(timeout=PATIENCE)
    expect(page).to_have_url(re.compile("feature=random-15"))
