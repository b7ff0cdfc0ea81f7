"""The app: resident memory of its server after 50 and after 500 views of its pages.

Every view is a session of its own, drawn as a browser asks for it, and views with a feature open another one each time.
"""

from __future__ import annotations

import ast
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import psutil
from browsing import ROOT, serve, view

FIRST, LAST, EVERY = 50, 500, 50
FEATURES = ("neurons.{layer}.gate:{index}", "resid-15:{index}", "neurons.{layer}.post:{index}", "mlp-15:{index}")
FIRST_PAGE = "browse"
QUIET = 3.0
"""Seconds in which the server ends the sessions that were left."""


def main() -> None:
    """Print the memory after each `EVERY` views, and the ratio of the last to the first."""
    pages, taken = _addresses(), {}
    with tempfile.TemporaryDirectory() as folder, serve(ROOT / "app" / "main.py", Path(folder) / "log") as server:
        for number in range(1, LAST + 1):
            address = pages[number % len(pages)]
            feature = FEATURES[number // len(pages) % len(FEATURES)]
            query = "feature=" + feature.format(layer=number % 30, index=7 * number % 1500)
            asks = address in (FIRST_PAGE, "steer")
            view(server.url, "" if address == FIRST_PAGE else address, query if asks else "")
            if number % EVERY == 0:
                time.sleep(QUIET)
                taken[number] = _memory(server.pid)
                print(f"  after {number:>3} views of pages {taken[number]:8,.0f} MB", flush=True)
    print(
        f"Memory of the app after {LAST} views: {taken[LAST] / taken[FIRST]:.2f} of that after {FIRST}  "
        "(wanted: at most 1.3)"
    )


def _addresses() -> list[str]:
    """The addresses of all pages, as their folders state them."""
    found = []
    for file in sorted((ROOT / "app").glob("*/__init__.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and "URL_PATH" in ast.unparse(node.targets[0]):
                found.append(ast.literal_eval(node.value)[2])
    return found


def _memory(pid: int) -> float:
    """Megabytes that a process and those that it started have in memory."""
    server = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (server, *server.children(recursive=True))) / 1e6


if __name__ == "__main__":
    main()
