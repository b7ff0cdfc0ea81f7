"""The app in a real browser: what a person sees and does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import PATIENCE, ROOT, Server, chromium, find_chromium, serve
from playwright.sync_api import Browser, Page, expect

import workbench as wb

pytestmark = [pytest.mark.browser, pytest.mark.real]
expect.set_options(timeout=60_000)

DOG = "neurons.29.gate:808"
QUESTION = "What is your favourite animal?"
STORY = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        reason = "no Chromium: install it, or run: python -m playwright install chromium"
        if os.environ.get("CI") or os.environ.get("WORKBENCH_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(path) as running:
        yield running


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, model: wb.model.LanguageModel) -> Iterator[Path]:
    """A folder with a small dictionary of random latents, and its index; the app finds it, and trains beside it."""
    folder = tmp_path_factory.mktemp("shelf")
    sae = wb.TopKSAE(576, 48, k=8, hook_point="blocks.15.hook_resid_post", name="random-15")
    sae.save(folder / "dictionaries" / "random-15")
    corpus = wb.Corpus(["The dog ran to the river.", "New York is a city, and New Jersey is not."] * 8)
    wb.build_index(model, sae, corpus, folder / "dictionaries" / "random-15" / "index", context=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_DICTIONARIES", str(folder / "dictionaries"))
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, shelf: Path) -> Iterator[Server]:
    """The app; whatever the tests did, it must not have written a traceback."""
    with serve(ROOT / "app" / "main.py", tmp_path_factory.mktemp("app") / "log") as server:
        yield server
        assert "Traceback" not in server.said(), server.said()


@pytest.fixture
def visit(browser: Browser, app: Server) -> Iterator[Callable[[str], Page]]:
    """Opens an address of the app in a browser session of its own."""
    contexts = []

    def go(address: str = "/") -> Page:
        contexts.append(browser.new_context(viewport={"width": 1440, "height": 1200}))
        page = contexts[-1].new_page()
        page.goto(app.url + address)
        title = next((title for title in ("Steer", "Inspect") if title.lower() in address), "Browse")
        expect(page.get_by_role("heading", name=title)).to_be_visible()
        return page

    yield go
    for context in contexts:
        context.close()


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


def shorten(page: Page, to: int = 32) -> None:
    """Let the model write fewer tokens than the 64 it starts with."""
    page.get_by_role("button", name="Settings").click()
    slider = page.get_by_role("slider", name="Tokens at most")
    for _ in range((64 - to) // 8):
        slider.press("ArrowLeft")
    expect(slider).to_have_value(str(to))
    page.keyboard.press("Escape")
    settled(page)


def complaint(page: Page) -> str:
    """The one sentence that is shown, and nothing like a traceback."""
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_have_count(1, timeout=PATIENCE)
    assert "Traceback" not in page.locator("body").inner_text()
    return alert.inner_text()


def test_from_a_word_to_a_changed_answer(visit: Callable[[str], Page]) -> None:
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


def test_from_a_latent_to_its_label_and_its_effect(visit: Callable[[str], Page], shelf: Path) -> None:
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
    for _ in range(40):
        slider.press("ArrowRight")
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


def test_a_model_typed_in(visit: Callable[[str], Page]) -> None:
    page = visit("/")
    chooser = page.get_by_role("combobox", name="Model")
    chooser.fill("/nowhere/at/all")
    chooser.press("Enter")
    assert "/nowhere/at/all" in complaint(page)
    chooser.fill("SmolLM2-135M-Instruct")
    chooser.press("Enter")
    expect(page.get_by_text("The most specialised neurons")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_test_id("stAlert")).to_have_count(0)


def test_two_visitors_at_once_get_what_each_gets_alone(
    visit: Callable[[str], Page], model: wb.model.LanguageModel
) -> None:
    asked = {"Dog neuron": (model.chat_prompt(QUESTION), wb.Clamp(DOG, 20.0))}
    asked["Water neuron"] = (STORY, wb.Clamp("neurons.28.post:879", 30.0))
    pages = {name: visit("/steer") for name in asked}
    for page in pages.values():
        expect(page.get_by_role("button", name="Generate")).to_be_visible(timeout=PATIENCE)
        shorten(page)
    for name, page in pages.items():
        page.get_by_role("button", name=name).click()
    for name, page in pages.items():
        prompt, edit = asked[name]
        alone = wb.compare(model, prompt, [edit], 32)
        plain, edited = written(page)
        assert plain.split() == alone.baseline.text.split()
        assert edited.split() == alone.edited.text.split()
        assert plain != edited


def test_writing_can_be_stopped(visit: Callable[[str], Page]) -> None:
    page = visit(f"/steer?feature={DOG}")
    expect(page.get_by_role("button", name="Generate")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".wb-text").last).to_contain_text("most", timeout=PATIENCE)  # it has begun
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped before the end")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Generate")).to_be_visible()


def test_markup_is_shown_and_not_run(browser: Browser, app: Server, tmp_path: Path) -> None:
    markup = ["<script>window.hacked=1</script>", '<img src="x" onerror="window.hacked=2">', "[a](javascript:hacked=3)"]
    script = tmp_path / "page.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'app')!r})\n"
        "import streamlit as st\n"
        "from shared import tokens\n"
        "from workbench.figures import token_bars\n"
        f"words = {markup!r}\n"
        "tokens.use_style()\n"
        "tokens.show_tokens(words, [0.1, 2.0, 9.0])\n"
        "tokens.show_chips(words)\n"
        "st.error(tokens.plain(words))\n"
        "st.plotly_chart(token_bars(words, [3.0, 2.0, 1.0], [0.1, 0.1, 0.1]), theme=None)\n"
        "st.write('end')\n"
    )
    with serve(script, tmp_path / "log") as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.get_by_text("end", exact=True)).to_be_visible()
        expect(page.locator(".ytick text")).to_have_count(3)
        for text in markup:
            assert text in page.locator(".wb-text:has(.t)").inner_text()
            assert text in page.locator(".wb-chips").inner_text()
            assert text in page.get_by_test_id("stAlert").inner_text()
        assert "<script>" in page.locator(".ytick text").first.text_content()
        assert page.locator(".stMain img, .stMain script, .stMain a[href^=javascript]").count() == 0
        assert page.evaluate("typeof window.hacked") == "undefined"
        page.close()


def test_markup_typed_into_the_app_is_shown_and_not_run(visit: Callable[[str], Page]) -> None:
    page = visit("/")
    text = "<script>window.hacked=1</script>"
    page.get_by_placeholder("dog").fill(text)
    expect(page.get_by_text(f"No neuron has “{text}”")).to_be_visible(timeout=PATIENCE)
    assert page.evaluate("typeof window.hacked") == "undefined"


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("/?feature=neurons.99.gate:1", "layer 99"),
        ("/?feature=nonsense", "is not a feature"),
        ("/steer?feature=neurons.29.gate:99999", "99999"),
        ("/steer?feature=runs/my-sae:3", "is not loaded"),
    ],
)
def test_a_bad_link_is_one_sentence(visit: Callable[[str], Page], address: str, word: str) -> None:
    assert word in complaint(visit(address))


@pytest.mark.parametrize(
    "data",
    [b"{", b"[1, 2]", b"\xff\xfe", b'{"format": 1, "model": {"name": "other", "hash": "x"}, "interventions": []}'],
)
def test_a_bad_file_is_one_sentence(visit: Callable[[str], Page], data: bytes) -> None:
    page = visit("/steer")
    page.get_by_role("button", name="Save or load").click(timeout=PATIENCE)
    page.locator("input[type=file]").set_input_files(
        {"name": "edits.json", "mimeType": "application/json", "buffer": data}
    )
    assert "interventions" in complaint(page)
