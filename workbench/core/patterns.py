"""Regular expressions of people and files: short ones, compiled in little memory, searched with a limit of time.

A plain engine that backtracks may search for years, and writes each repetition out while it compiles.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator

import regex

from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shown

LONGEST = 1000
"""Letters of a pattern that a person writes."""
PATIENCE = 9.0
"""Seconds that all searches with a pattern may take together."""
REPETITIONS = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
"""A part of a pattern that says how often the part before it is repeated."""
PARTS = re.compile(rf"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|{REPETITIONS.pattern}|.", re.DOTALL)
"""A part of a pattern: an escaped character, a set, a number of repetitions, or a character."""
OTHER_PARTS = re.compile(r"\(\?(?:#|[a-zA-Z0-9-]*[xV])")
"""What makes parts of a pattern mean something else: comments, and flags for spaces and for sets in sets."""
MOST = 10_000
"""Repetitions that a pattern asks for, those inside others multiplied by these; compiling writes each out."""


class Patience:
    """The time that searches may take together.

    Attributes:
        left: seconds.
    """

    def __init__(self) -> None:
        self.left = PATIENCE


class SafePattern:
    """A compiled pattern whose searches end.

    Args:
        pattern: the regular expression.
        error: the room's own error.
        longest: letters that it may have.
        patience: of all patterns that share it; one of its own by default.

    Attributes:
        pattern: as it was given.
        groups: number of its groups.

    Raises:
        WorkbenchError: of the given kind: it is no regular expression, or one that takes too long to compile; from a
            search, that all took longer than `PATIENCE`.
    """

    def __init__(
        self,
        pattern: str,
        error: type[WorkbenchError],
        longest: int = LONGEST,
        patience: Patience | None = None,
    ):
        self.pattern, self._error = pattern, error
        if len(pattern) > longest:
            raise error(f"A regular expression has at most {longest:,} characters, not {len(pattern):,}.")
        if _repetitions(pattern) > MOST:
            raise error(f"The regular expression {shown(pattern)} repeats too often; write smaller numbers.")
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, TypeError, RecursionError, OverflowError, ValueError) as wrong:
            raise error(f"{shown(pattern)} is no regular expression ({wrong}).") from wrong
        self.groups: int = self._compiled.groups
        self._patience = Patience() if patience is None else patience

    def starts(self, text: str, group: int = 0) -> list[int]:
        """Where a group of each match in a text begins; without the matches in which it takes no part."""
        with self._timed() as seconds:  # concurrent: releases the lock of the interpreter
            found = self._compiled.finditer(text, concurrent=True, timeout=seconds)
            return [start for start in (match.start(group) for match in found) if start >= 0]

    def is_in(self, text: str) -> bool:
        """Whether a text holds a match."""
        with self._timed() as seconds:
            return self._compiled.search(text, concurrent=True, timeout=seconds) is not None

    def begins(self, text: str) -> bool:
        """Whether a text begins with a match."""
        with self._timed() as seconds:
            return self._compiled.match(text, concurrent=True, timeout=seconds) is not None

    @contextlib.contextmanager
    def _timed(self) -> Iterator[float]:
        """A block that searches for so many seconds at most."""
        begun = time.monotonic()
        try:
            if self._patience.left <= 0:
                raise TimeoutError
            yield self._patience.left
        except TimeoutError:
            raise self._error(
                f"The regular expression {shown(self.pattern)} takes longer than {PATIENCE:g} s; write it with fewer "
                "repetitions inside repetitions."
            ) from None
        finally:
            self._patience.left -= time.monotonic() - begun


def _repetitions(pattern: str) -> int:
    """Repetitions that a pattern asks for: the sum of those side by side, the product of those inside one another.

    It is the product of all where a flag or a comment makes the nesting unsure.
    """
    if OTHER_PARTS.search(pattern):
        return math.prod(max(_number(part), 1) for part in REPETITIONS.finditer(pattern))
    totals, last = [0], 0  # of each open group, and of the part just read
    for part in PARTS.finditer(pattern):
        if part[0] == "(":
            totals.append(0)
            last = 0
        elif part[0] == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif part[1] is not None:
            repeated = max(_number(part), 1) * last if last else _number(part)
            totals[-1] += repeated - last
            last = repeated
        else:
            last = 0
    return sum(totals)


def _number(repetition: re.Match[str]) -> int:
    """The larger number of a match of `REPETITIONS`; numbers too long to read count as the first beyond `MOST`."""
    digits = max(repetition[1], repetition[2], key=len) or "1"
    return int(digits) if len(digits) <= 9 else MOST + 1
