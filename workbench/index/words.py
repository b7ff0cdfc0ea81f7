"""Search by word, literally: every letter and sign of a query counts, only case does not."""

from __future__ import annotations

import unicodedata

WHOLE, BEGINNING, ABSENT = 2, 1, 0
"""How a text holds a word: as a whole word, as the beginning of one, or not at all."""


def folded(text: str) -> str:
    """The text in the form in which texts are compared: without case, each character composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def words_of(text: str) -> list[str]:
    """The words of a query, folded: its parts between white space, with their punctuation."""
    return folded(text).split()


def match(word: str, text: str) -> int:
    """How a folded text holds a folded word: `WHOLE`, `BEGINNING` or `ABSENT`.

    A word that begins with a letter or a digit stands where no other one precedes it: "c" is in "C++", not in "doc". A
    word that begins with another sign, or in a script without cases and spaces, stands anywhere.
    """
    best, at = ABSENT, text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (_bound(word[0]) and _bound(text[at - 1 : at])):
            if not (_bound(word[-1]) and _bound(text[end : end + 1])):
                return WHOLE
            best = BEGINNING
        at = text.find(word, at + 1)
    return best


def match_all(words: list[str], text: str) -> int:
    """How a text, not yet folded, holds all of some folded words: as the least of them."""
    whole, least = folded(text), WHOLE if words else ABSENT
    for word in words:
        least = min(least, match(word, whole))
        if least == ABSENT:
            break
    return least


def _bound(letter: str) -> bool:
    """Whether a character is a digit or a letter that has a case; False for none at all."""
    return letter.isdigit() or letter.upper() != letter.lower()
