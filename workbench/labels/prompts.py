"""The prompts for labels and for their test, and how answers are read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from workbench.index import Example

LONGEST = 200
"""Characters of a label."""
OPEN, CLOSE = "«", "»"
STRONG = 0.5
"""Share of an example's highest value from which on a token is marked."""


def marked(example: Example) -> str:
    """An example's text on one line, with the tokens of high values between marks."""
    least = STRONG * example.value
    parts = [
        f"{OPEN}{token}{CLOSE}" if place == example.peak or (value is not None and value >= least > 0) else token
        for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True))
    ]
    return one_line("".join(parts))


def one_line(text: str) -> str:
    """A text without line breaks and control characters."""
    return "".join(" " if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") else one for one in text).strip()


def for_label(examples: Sequence[Example]) -> str:
    """The prompt for a label."""
    listed = "\n".join(f"{number}. {marked(one)}" for number, one in enumerate(examples, 1))
    return (
        f"Each text has some tokens between {OPEN} and {CLOSE}. A detector marked them. Say in at most ten words what "
        f"the marked tokens have in common, considering what stands around them.\n\n{listed}\n\n"
        "Answer with those words alone, on one line."
    )


def for_detection(label: str, texts: Sequence[str]) -> str:
    """The prompt that asks which texts hold what a label says."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))
    return (
        f"A detector marks this: {label}\n\nWhich of these texts hold a token that it marks?\n\n{listed}\n\n"
        "Answer with the numbers of those texts, separated by commas, or with the word none."
    )


def as_label(answer: str) -> str:
    """The label in an answer: its first line that is not empty, cut; empty where there is none."""
    for line in answer.splitlines():
        text = one_line(line).strip("\"'“” *`.")
        if any(one.isalnum() for one in text):
            return text[:LONGEST]
    return ""


def as_numbers(answer: str, count: int) -> set[int] | None:
    """The numbers from 1 to `count` in an answer; None where it says neither a number nor none."""
    found = {int(one) for one in re.findall(r"(?<!\d)\d{1,4}(?!\d)", answer)}
    if found and max(found) > count:
        return None
    if found or re.search(r"\bnone\b", answer, re.IGNORECASE):
        return found - {0}
    return None
