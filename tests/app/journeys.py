"""Each page of the app brought to its results by a person in a browser, with the least work that shows them."""

from __future__ import annotations

import re
from collections.abc import Callable

from browsing import PATIENCE
from in_browser import DOG, settled, shorten
from playwright.sync_api import Page, expect

Journey = Callable[[Page], None]


def _fewer(page: Page, name: str, number: int) -> None:
    box = page.get_by_role("spinbutton", name=name, exact=True)
    box.fill(str(number))
    box.press("Enter")
    settled(page)


def _seen(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_text(text).first).to_be_visible(timeout=PATIENCE)
    settled(page)


def browse(page: Page) -> None:
    page.get_by_role("button", name="dog", exact=True).click(timeout=PATIENCE)
    _seen(page, "“dog” among")


def neuron(page: Page) -> None:
    _seen(page, "Most similar neurons")


def latents(page: Page) -> None:
    _seen(page, "Nearest latents")
    box = page.get_by_role("searchbox", name="Search the latents")
    box.fill("York")
    box.press("Enter")
    _seen(page, "best first")


def steer(page: Page) -> None:
    shorten(page, 8)
    page.get_by_text("Compare with a random feature").click()
    settled(page)
    page.get_by_role("button", name="Generate").click()
    _seen(page, "Tokens whose probability moved most")


def compare(page: Page) -> None:
    _fewer(page, "Tokens", 256)
    page.get_by_role("button", name="Measure").click()
    _seen(page, "Measured on")


def read(page: Page) -> None:
    page.get_by_role("radio", name="features").click(timeout=PATIENCE)
    _seen(page, "A click on a row opens the feature")
    page.get_by_role("combobox", name="Layer").click()
    page.get_by_role("option", name="15", exact=True).click()
    settled(page)
    page.get_by_role("button", name="Take it out").click(timeout=PATIENCE)
    _seen(page, "Without it the log-probability")
    page.get_by_role("combobox", name="Card of head").click()
    page.get_by_role("option").nth(1).click()
    settled(page)


def train(page: Page) -> None:
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_visible(timeout=PATIENCE)
    settled(page)


def attribution(page: Page) -> None:
    _fewer(page, "Latents to trace", 64)
    page.get_by_role("button", name="Attribute", exact=True).click()
    _seen(page, re.compile(r"of [\d,]+ nodes, [\d,]+ edges"))


def circuits(page: Page) -> None:
    _fewer(page, "Pairs of prompts", 4)
    page.get_by_role("button", name="Find heads").click()
    _seen(page, re.compile(r"Prompts \(\d+ pairs\)"))
    page.get_by_text(re.compile(r"Prompts \(\d+ pairs\)")).click()
    settled(page)


def sparsity(page: Page) -> None:
    _fewer(page, "Tokens", 128)
    page.get_by_role("button", name="Measure").click()
    _seen(page, "Thresholds set on")


def surgery(page: Page) -> None:
    page.get_by_role("combobox", name="Operation").click(timeout=PATIENCE)
    page.get_by_role("option", name="Prune").first.click()
    settled(page)
    _fewer(page, "Tokens to measure on", 128)
    page.get_by_role("button", name="Try it").click()
    _seen(page, "What it costs")


def states(page: Page) -> None:
    page.get_by_role("button", name="tokfsm-attention").click(timeout=PATIENCE)
    _seen(page, "Codebook")


def directions(page: Page) -> None:
    page.get_by_role("button", name="Find", exact=True).click(timeout=PATIENCE)
    _seen(page, "What it does")
    page.get_by_role("button", name="Write", exact=True).click(timeout=PATIENCE)
    _seen(page, "Along a random direction")


def differences(page: Page) -> None:
    box = page.get_by_role("textbox", name="Folder or name")
    box.fill("/a/folder")
    box.press("Enter")
    settled(page)


def settings(page: Page) -> None:
    _seen(page, "In memory")


JOURNEYS: dict[str, Journey] = {
    "browse": browse,
    f"browse?feature={DOG}": neuron,
    "browse?feature=resid-15:541": latents,
    f"steer?feature={DOG}": steer,
    "compare": compare,
    "inspect": read,
    "train": train,
    "directions": directions,
    "differences": differences,
    "attribution": attribution,
    "circuits": circuits,
    "sparsity": sparsity,
    "surgery": surgery,
    "states": states,
    "settings": settings,
}
"""By the address of the page."""
