"""Classes of tokens, by their text alone and by their place among others."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping

OPENING, CLOSING = "([{<", ")]}>"
QUOTES = "\"'“”‘’«»"


def _letters(text: str) -> str:
    return "".join(one for one in text if one.isalpha())


def _marks(text: str) -> bool:
    return bool(text) and all(unicodedata.category(one)[0] in "PS" for one in text)


BY_TEXT: Mapping[str, Callable[[str], bool]] = {
    "a number": lambda text: text.strip().isdigit(),
    "a capital letter": lambda text: text.strip()[:1].isupper(),
    "capitals alone": lambda text: len(_letters(text)) > 1 and _letters(text).isupper(),
    "a small letter": lambda text: text.strip()[:1].islower(),
    "a punctuation mark": lambda text: _marks(text.strip()),
    "the end of a sentence": lambda text: text.strip()[-1:] in tuple(".!?…。！？") and bool(text.strip()),
    "a comma": lambda text: text.strip() in (",", "，", "、"),
    "a quotation mark": lambda text: bool(text.strip()) and all(one in QUOTES for one in text.strip()),
    "an opening bracket": lambda text: text.strip()[-1:] in tuple(OPENING) and bool(text.strip()),
    "a closing bracket": lambda text: text.strip()[:1] in tuple(CLOSING) and bool(text.strip()),
    "a colon or semicolon": lambda text: text.strip()[-1:] in tuple(":;") and bool(text.strip()),
    "a dash": lambda text: bool(text.strip()) and all(one in "-–—" for one in text.strip()),
    "a line break": lambda text: "\n" in text,
    "white space": lambda text: bool(text) and text.isspace(),
    "a letter of another script": lambda text: any(ord(one) > 0x24F and one.isalpha() for one in text),
}
"""By the words of a label, whether the text of a token is of the class."""
FIRST, SENTENCE, LINE, QUOTED, INSIDE, EARLY = (
    "the first token of a text",
    "the first word of a sentence",
    "the beginning of a line",
    "inside quotation marks",
    "the rest of a word that began before",
    "among the first 16 tokens of a text",
)
"""Classes of places."""
EARLIEST = 16
"""Tokens of a text that count as early."""
