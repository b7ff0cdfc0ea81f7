"""Which test files run first, and which took longest.

Two processes share the files: whoever is free takes the next one. The run is shortest if the slow files come first, so
files are ordered by the seconds that they took when `make durations` was last run; files that it does not know come
before all. The ten slowest are printed at the end of each run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

DURATIONS = Path(__file__).with_name("durations.json")
"""Seconds of each test file, by its path below `tests/`."""
_seconds: defaultdict[str, float] = defaultdict(float)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help="record how long each file took")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the tests of a file stay in their order."""
    known = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -known.get(_file(item.nodeid), float("inf")))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[_file(report.nodeid)] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or len(_seconds) < 2:
        return
    slowest = sorted(_seconds.items(), key=lambda pair: -pair[1])
    terminalreporter.section("ten slowest files")
    for name, seconds in slowest[:10]:
        terminalreporter.line(f"{seconds:7.1f} s  {name}")
    terminalreporter.line(f"{sum(_seconds.values()):7.1f} s  all {len(_seconds)} files")
    if config.getoption("--write-durations"):
        rounded = {name: round(seconds) for name, seconds in sorted(_seconds.items()) if seconds >= 1}
        DURATIONS.write_text(json.dumps(rounded, indent=1) + "\n")


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")
