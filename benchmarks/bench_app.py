"""The app in a real browser: times from `streamlit run` to a usable page, from a word to its neurons, from a card to
the next."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browsing import PATIENCE, ROOT, chromium, find_chromium, serve
from playwright.sync_api import Page

WORDS = ["dog", "water", "river", "doctor", "France", "python", "yesterday", "themselves"]
STARTS = 3

# From the last key to the moment when heading and table both show the new word's neurons, in the page's own clock.
WATCH = """word => new Promise(resolve => {
  const box = document.querySelector('input[type=search]');
  const cell = () => document.querySelector('[data-testid=stDataFrame] td')?.innerText;
  const before = cell();
  let start;
  box.addEventListener('input', () => { start = performance.now(); });
  const look = () => {
    const shown = [...document.querySelectorAll('strong')].some(one => one.innerText.includes('“' + word + '”'));
    if (start && shown && cell() !== before) resolve(performance.now() - start);
    else requestAnimationFrame(look);
  };
  look();
})"""


CARDS = 8
# From a click to the moment when the heading names another latent and other examples, or the word that there are none,
# are there.
CLICK = """link => new Promise(resolve => {
  const heading = () => [...document.querySelectorAll('h3')].map(one => one.innerText).find(one => /latent/.test(one));
  const examples = () => document.querySelector('.st-key-card :is(.wb-examples, [data-testid=stAlert])')?.innerText;
  const before = [heading(), examples()];
  const start = performance.now();
  link.click();
  const look = () => {
    if (heading() && heading() !== before[0] && examples() && examples() !== before[1])
      resolve(performance.now() - start);
    else requestAnimationFrame(look);
  };
  look();
})"""


def main() -> None:
    """Print both times and their ratio to what is wanted."""
    path = find_chromium()
    if path is None:
        print("There is no Chromium here, so the app can't be timed; try: python -m playwright install chromium")
        return
    starts, typed, entered, cards = [], [], [], []
    with chromium(path) as browser, tempfile.TemporaryDirectory() as folder:
        for number in range(STARTS + 1):  # the first warms the caches
            begun = time.perf_counter()
            with serve(ROOT / "app" / "main.py", Path(folder) / f"log{number}") as server:
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.goto(server.url)
                page.get_by_text("The most specialised neurons").wait_for(timeout=PATIENCE)
                page.locator("[data-testid=stDataFrame] td").first.wait_for(state="attached", timeout=PATIENCE)
                starts.append(time.perf_counter() - begun)
                if number == STARTS:
                    _search(page, WORDS[0], enter=False)
                    typed = [_search(page, word, enter=False) for word in WORDS[1:]]
                    entered = [_search(page, word, enter=True) for word in WORDS]
                    cards = _cards(page, server.url)
                page.close()
    _report("From `streamlit run` to a usable page", starts[1:], 10.0)
    _report("Search, from the last key, pause included", typed, 0.5)
    _report("Search, with Enter", entered, 0.5)
    _report("A latent's card, from a click on a neighbour", cards, 0.3)


def _search(page: Page, word: str, enter: bool) -> float:
    """Seconds from the last key to the neurons on the page."""
    watch = page.evaluate_handle(f"word => {{ window.seen = ({WATCH})(word); }}", word)
    box = page.get_by_role("searchbox", name="Search for a word")
    box.fill(word)
    if enter:
        box.press("Enter")
    seconds = page.evaluate("window.seen") / 1000
    watch.dispose()
    page.wait_for_timeout(400)
    return seconds


def _cards(page: Page, url: str) -> list[float]:
    """Seconds from a click on the nearest latent to its card, examples included, several times in a row."""
    page.goto(f"{url}/?feature=resid-15:100")
    page.get_by_text("Nearest latents").wait_for(timeout=PATIENCE)
    times = []
    for number in range(CARDS + 1):  # the first warms the caches
        page.wait_for_timeout(1500)
        links = page.locator("[data-testid=stPageLink-NavLink]").filter(has=page.locator("strong"))
        seconds = page.evaluate(CLICK, links.nth(number % 3).element_handle())
        if number:
            times.append(seconds / 1000)
    return times


def _report(what: str, times: list[float], wanted: float) -> None:
    middle = statistics.median(times)
    print(
        f"{what}: median {middle:.2f} s, worst {max(times):.2f} s, best {min(times):.2f} s; "
        f"{middle / wanted:.2f} of the {wanted:g} s allowed  (wanted: at most 1)"
    )


if __name__ == "__main__":
    main()
