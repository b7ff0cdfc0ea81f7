"""Whoever waits in a terminal or a notebook sees a bar; nobody else does."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest

from workbench.core import progress as rule
from workbench.core.checks import checked
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress, reporting


class Terminal(io.StringIO):
    """Standard error that says whether it is a terminal."""

    def __init__(self, tty: bool = True):
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


class Notebook(Terminal):
    """Standard error of a kernel, which is no terminal."""

    def __init__(self) -> None:
        super().__init__(tty=False)


Notebook.__module__ = "ipykernel.iostream"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: a list of one number."""
    now = [100.0]
    monkeypatch.setattr(rule.time, "time", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return now


def work(seconds: list[float], step: float, inner: Callable[..., Any] | None = None) -> Callable[..., Any]:
    @checked(WorkbenchError)
    def long_work(*, progress: Progress | None = None) -> int:
        for done in range(4):
            seconds[0] += step
            if progress:
                progress(done / 4, f"step {done}")
            if inner is not None:
                inner()
        return 7

    return long_work


@pytest.mark.parametrize(
    ("stream", "step", "seen"),
    [
        (Terminal(), 0.5, True),
        (Notebook(), 0.5, True),
        (Terminal(tty=False), 0.5, False),  # a file, or the output of a test
        (Terminal(), 0.1, False),  # over before a second has passed
    ],
)
def test_a_bar_where_somebody_waits_for_longer_than_a_second(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch, stream: Terminal, step: float, seen: bool
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    assert work(seconds, step)() == 7
    assert ("100%" in stream.getvalue() and "step 3" in stream.getvalue()) is seen


def test_false_says_no_and_a_function_is_told_alone(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    told: list[tuple[float, str]] = []
    assert work(seconds, 1)(progress=False) == 7
    assert work(seconds, 1)(progress=lambda share, what: told.append((share, what))) == 7
    assert told == [(0.0, "step 0"), (0.25, "step 1"), (0.5, "step 2"), (0.75, "step 3")]
    assert stream.getvalue() == ""
    with pytest.raises(WorkbenchError, match="progress is a function"):
        work(seconds, 1)(progress=True)


def test_a_call_inside_another_draws_no_second_bar(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    inner = work(seconds, 2)
    work(seconds, 1, inner)(progress=False)
    work(seconds, 1, inner)(progress=lambda share, what: None)
    assert stream.getvalue() == ""
    inner()
    assert "step 3" in stream.getvalue()


def test_no_bar_beside_the_main_thread(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages of the app run."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    thread = threading.Thread(target=work(seconds, 1))
    thread.start()
    thread.join()
    assert stream.getvalue() == ""


def test_work_that_fails_ends_where_it_was(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)

    def fails() -> None:
        with reporting(None) as tell:
            assert tell
            seconds[0] += 2
            tell(0.5, "a name\x1b[31m\n")
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fails()
    assert " 50%" in stream.getvalue()
    assert "100%" not in stream.getvalue()
    assert "[31m" in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
    with reporting(None) as tell:  # the next call draws its own
        assert tell
