"""The app in a real browser: from a word or a latent to a changed answer, several visitors, what is typed wrongly."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from browsing import PATIENCE, ROOT, Server, serve
from in_browser import DOG, Visit, complaint, generate, settled, shorten, written
from playwright.sync_api import BrowserContext, expect

import workbench as wb

QUESTION = "What is your favourite animal?"
STORY = "Once upon a time, there was a"

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
    shorten(page)
    slider = page.get_by_role("slider", name="Set to")
    slider.press("End")
    settled(page)
    plain, edited = generate(page)
    assert plain != edited

    page.get_by_role("link", name="Read", exact=True).click()
    page.get_by_role("radio", name="features").click(timeout=PATIENCE)
    expect(page.get_by_text("List the features of")).to_be_visible(timeout=PATIENCE)
    settled(page)
    assert page.locator(".wb-text .t").first.get_attribute("data-value").startswith("random-15:")
    page.locator(".dvn-scroller").first.click(position={"x": 16, "y": 52})  # the box before the first feature
    expect(page.get_by_role("heading", name=re.compile(r"random-15, latent \d+"))).to_be_visible(timeout=PATIENCE)
    expect(page).to_have_url(re.compile("feature=random-15"))


def test_from_a_text_to_a_cell_and_what_it_is_made_of(visit: Visit, model: wb.model.LanguageModel) -> None:
    page = visit("/inspect")
    grid = page.locator(".whole")
    expect(grid.locator("tbody tr")).to_have_count(30, timeout=PATIENCE)
    text = "The capital of France is"
    page.get_by_role("textbox", name="Text").fill(text)
    page.get_by_role("button", name="Read", exact=True).click()
    expect(grid.locator("thead th")).to_have_count(6, timeout=PATIENCE)
    expect(page.get_by_role("button", name="Take it out")).to_be_visible(timeout=PATIENCE)
    settled(page)
    seen = wb.read_lens(model, text, layers=[15], top_k=3)
    cell = grid.locator("tbody tr").nth(29 - 15).locator("td").nth(3)
    cell.hover()
    expect(grid.locator(".tip")).to_contain_text(f"{float(seen.probabilities[0, 3, 0]):.0%}")
    cell.click()
    expect(page.get_by_text("What layer 15 adds to the logit")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Features active on ␣France at layer 15")).to_be_visible()
    settled(page)
    page.get_by_role("button", name="Take it out").click()
    expect(page.get_by_text("Without it the log-probability")).to_be_visible(timeout=PATIENCE)
    settled(page)
    page.get_by_role("button", name="Trace this answer").click()
    expect(page.get_by_role("heading", name="Attribution")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("The capital of France")


def test_a_model_typed_in(visit: Visit) -> None:
    page = visit("/")
    chooser = page.get_by_role("combobox", name="Model")
    chooser.fill("/nowhere/at/all")
    chooser.press("Enter")
    assert "/nowhere/at/all" in complaint(page)
    chooser.fill("SmolLM2-135M-Instruct")
    chooser.press("Enter")
    expect(page.get_by_text("The most specialised neurons")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_test_id("stAlert")).to_have_count(0)


def test_two_visitors_at_once_get_what_each_gets_alone(visit: Visit, model: wb.model.LanguageModel) -> None:
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
        alone = wb.compare(model, prompt, [edit], 16)
        plain, edited = written(page)
        assert plain.split() == alone.baseline.text.split()
        assert edited.split() == alone.edited.text.split()
        assert plain != edited


def test_writing_can_be_stopped(visit: Visit) -> None:
    page = visit(f"/steer?feature={DOG}")
    expect(page.get_by_role("button", name="Generate")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Settings").click()  # a text that takes longer than a slow browser
    page.get_by_role("slider", name="Tokens at most").press("End")
    page.get_by_role("spinbutton", name="Tokens at least").fill("256")
    page.get_by_role("spinbutton", name="Tokens at least").press("Enter")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".wb-text").last).to_contain_text("most", timeout=PATIENCE)  # it has begun
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped before the end")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Generate")).to_be_visible()


def test_markup_is_shown_and_not_run(context: BrowserContext, tmp_path: Path) -> None:
    markup = ["<script>window.hacked=1</script>", '<img src="x" onerror="window.hacked=2">', "[a](javascript:hacked=3)"]
    script = tmp_path / "page.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'app')!r})\n"
        "import streamlit as st\n"
        "from shared import tokens\n"
        "from workbench.core.text import plain\n"
        "from workbench.figures import token_bars\n"
        f"words = {markup!r}\n"
        "tokens.use_style()\n"
        "tokens.show_tokens(words, [0.1, 2.0, 9.0])\n"
        "tokens.show_chips(words)\n"
        "st.error(plain(words))\n"
        "st.plotly_chart(token_bars(words, [3.0, 2.0, 1.0], [0.1, 0.1, 0.1]), theme=None)\n"
        "st.write('end')\n"
    )
    with serve(script, tmp_path / "log") as server:
        page = context.new_page()
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


def test_markup_typed_into_the_app_is_shown_and_not_run(visit: Visit) -> None:
    page = visit("/")
    text = "<script>window.hacked=1</script>"
    page.get_by_placeholder("dog").fill(text)
    expect(page.get_by_text(f"No neuron has “{text}”")).to_be_visible(timeout=PATIENCE)
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_names_of_strangers_fetch_nothing(
    context: BrowserContext, app: Server, shelf: Path, model: wb.model.LanguageModel
) -> None:
    """A browser asks no address that stands in the name of a dictionary, a label or a run."""
    name, run = "![x](http://127.0.0.1:9/x.png)<img src=http://127.0.0.1:9/y>", "[a](javascript:alert(1))<img src=x>"
    sae = wb.load_dictionary(shelf / "dictionaries" / "random-15")
    sae.name = name
    sae.save(shelf / "dictionaries" / "strange")
    corpus = wb.Corpus(["The dog ran.", "New York."], name)
    index = wb.build_index(model, sae, corpus, shelf / "dictionaries" / "strange" / "index")
    for latent in range(sae.n_features):
        index.label(latent, name)
    (shelf / "runs" / run).mkdir(parents=True)
    (shelf / "runs" / run / "history.jsonl").touch()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    feature = quote(f"{name}:3")
    page.goto(f"{app.url}/?feature={feature}")
    expect(page.get_by_role("heading", name="y>, latent 3")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("link", name=name).first).to_be_visible()  # the labels of the nearest latents
    page.goto(f"{app.url}/steer?feature={feature}")
    expect(page.get_by_role("link", name=f"y>, latent 3: {name}")).to_be_visible(timeout=PATIENCE)
    settled(page)
    page.goto(f"{app.url}/train")
    page.get_by_role("combobox", name="Show").click(timeout=PATIENCE)
    page.get_by_role("option", name=run).click()
    expect(page.get_by_role("heading", name=run)).to_be_visible()
    settled(page)
    assert page.locator(".stMain img, .stMain a[href^=javascript]").count() == 0
    assert [url for url in asked if "127.0.0.1:9/" in url or not url.startswith((app.url, "data:", "blob:"))] == []
    page.close()


BAD_LINKS = {"/?feature=nonsense": "is not a feature", "/steer?feature=runs/my-sae:3": "is not loaded"}
"""Others are in `test_app_steer.py`, which needs no browser."""


def test_a_bad_link_is_one_sentence(visit: Visit, app: Server) -> None:
    first = next(iter(BAD_LINKS))
    page = visit(first)
    for address, word in BAD_LINKS.items():
        if address != first:
            page.goto(app.url + address)  # a new session of the app
        assert word in complaint(page), address


OTHERS = b'{"format": 1, "model": {"name": "other", "hash": "x"}, "interventions": []}'
BAD_FILES = [b"\xff\xfe", OTHERS]
"""Others are in `test_app_steer.py`."""


def test_a_bad_file_is_one_sentence(visit: Visit) -> None:
    page = visit("/steer")
    page.get_by_role("button", name="Save or load").click(timeout=PATIENCE)
    for number, data in enumerate(BAD_FILES):
        page.locator(f".st-key-upload-{number} input[type=file]").set_input_files(
            {"name": "edits.json", "mimeType": "application/json", "buffer": data}
        )
        expect(page.locator(f".st-key-upload-{number + 1}")).to_have_count(1, timeout=PATIENCE)  # it was read
        settled(page)
        assert "interventions" in complaint(page), data
