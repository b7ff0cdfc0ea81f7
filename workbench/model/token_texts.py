"""The text of tokens as parts of a text: what they add behind the tokens before them.

A tokenizer may leave out the space of a text's first word, and write one character as several tokens. The text of a
part is therefore not what the tokenizer decodes the part to, but the text of the whole without that of its beginning.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from workbench.core.vocabulary import special_tokens

NEUTRAL = ("a", "e", "o", "1", "0")
"""Texts whose last token can stand before any other token, to see what that adds."""
BEFORE_WORDS = ("\n", "a", ".")
"""Texts that can stand before a word without growing together with it; the first that does not is used."""
WORDS = "a a"
"""A text with a space inside, to see whether a token keeps it."""
BROKEN = "�"
"""The letter that stands for bytes of an incomplete character."""
LARGEST_ID = 2**32
"""Ids below are those that a tokenizer can be asked for."""


def added_text(tokenizer: Any, tokens: Sequence[int], after: Sequence[int] = ()) -> str:
    """The text that tokens add behind those before them, without special tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        tokens: ids of the tokens.
        after: ids of all tokens before them.
    """
    return _beyond(_decoded(tokenizer, after), _decoded(tokenizer, [*after, *tokens]))


class TextStreamer:
    """Splits a growing text into the part that each token adds, and holds back what later tokens can change.

    The parts join to `added_text` of all tokens once `rest` or a last token has been taken.

    Args:
        tokenizer: a Hugging Face tokenizer.
        after: ids of the tokens before the text.

    Attributes:
        shown: the text of the last tokens, as far as it has been given out.
        holds: whether text is held back.
    """

    def __init__(self, tokenizer: Any, after: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._open = self._with_text(after)
        self.shown = _decoded(tokenizer, self._open)
        self._byte = _lone_byte(tokenizer)
        self.holds = False

    def add(self, token: int, last: bool = False) -> str:
        """The text that the token completes; with the last token, all text that is left."""
        more = self._with_text([token])
        if not more and not last:
            return ""
        self._open += more
        text = _decoded(self._tokenizer, self._open)
        self.holds = not last and not self._settled(text)
        if self.holds:
            return ""
        new = _beyond(self.shown, text)
        # the last token with a text stays as context, for tokenizers that leave out the space of a first word
        start = len(self._open) - 1
        self.shown = _decoded(self._tokenizer, self._open[start:])
        while start > 0 and not self.shown:
            start -= 1
            self.shown = _decoded(self._tokenizer, self._open[start:])
        self._open = self._open[start:]
        return new

    def rest(self) -> str:
        """The text that was held back, for a text that ends here."""
        text = _decoded(self._tokenizer, self._open)
        new, self.shown, self.holds = _beyond(self.shown, text), text, False
        return new

    def _with_text(self, tokens: Sequence[int]) -> list[int]:
        """Those of some tokens that decoding does not leave out."""
        return [token for token in tokens if token not in self._special]

    def _settled(self, text: str) -> bool:
        """Whether later tokens leave the text of the open tokens as it is."""
        if text.endswith(BROKEN):
            return False
        # one byte that fits nothing breaks all characters of the bytes in a row before it
        return self._byte is None or _decoded(self._tokenizer, [*self._open, self._byte]).startswith(text)


class StringFinder:
    """Finds strings in a growing text.

    Args:
        strings: each of at least one character.
        before: the text before; a string may begin in it.
    """

    def __init__(self, strings: Sequence[str], before: str):
        self._strings, self._room = strings, max(map(len, strings)) - 1
        self._tail = self._last(before)

    def ends_in(self, piece: str) -> bool:
        """Whether one of the strings ends in the piece that is added."""
        text = self._tail + piece
        found = any(one in text[max(len(self._tail) - len(one) + 1, 0) :] for one in self._strings)
        self._tail = self._last(text)
        return found

    def _last(self, text: str) -> str:
        return text[max(len(text) - self._room, 0) :]


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text that each single token adds inside a text: "▁dog" is " dog".

    Bytes of a broken character show as �, special tokens as they are written; ids that the tokenizer lacks have none.
    """
    context = _neutral(tokenizer)
    if context is None or _adds_up(tokenizer):
        return tokenizer.batch_decode([[token] for token in tokens])
    special = special_tokens(tokenizer)
    before = tokenizer.decode([context])
    texts = tokenizer.batch_decode([[token] if token in special else [context, token] for token in tokens])
    return [text if token in special else _beyond(before, text) for token, text in zip(tokens, texts, strict=True)]


def part_tokens(tokenizer: Any, text: str) -> list[int]:
    """The token ids that a text adds inside another one; as the tokenizer gives them alone where none add just it."""
    plain = tokenizer(text, add_special_tokens=False).input_ids
    context = _neutral(tokenizer)
    if context is None or added_text(tokenizer, plain, [context]) == text:
        return plain
    for beginning in BEFORE_WORDS:
        before = tokenizer(beginning, add_special_tokens=False).input_ids
        whole = tokenizer(beginning + text, add_special_tokens=False).input_ids
        part = whole[len(before) :]
        if whole[: len(before)] == before and added_text(tokenizer, part, before) == text:
            return part
    return plain


@functools.lru_cache(16)
def _adds_up(tokenizer: Any) -> bool:
    """Whether a token alone has the text that it adds inside a text: its space too."""
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    alone = tokenizer.batch_decode([[token] for token in ids])
    return "".join(alone) == WORDS and any(text.startswith(" ") for text in alone)


@functools.lru_cache(16)
def _neutral(tokenizer: Any) -> int | None:
    """A token with a text of its own that no token behind it changes; None if there is none."""
    special, byte = special_tokens(tokenizer), _lone_byte(tokenizer)
    letters = [tokenizer(letter, add_special_tokens=False).input_ids[-1:] for letter in NEUTRAL]
    for token in [*(ids[0] for ids in letters if ids), *range(min(len(tokenizer), 1000))]:
        text = "" if token in special else tokenizer.decode([token])
        changed = byte is not None and not tokenizer.decode([token, byte]).startswith(text)
        if text.strip() and BROKEN not in text and not changed:
            return token
    return None


@functools.lru_cache(16)
def _lone_byte(tokenizer: Any) -> int | None:
    """A token for the byte 0x80 of a tokenizer whose decoder joins such tokens to characters; None for others."""
    token = tokenizer.convert_tokens_to_ids("<0x80>")
    return token if token is not None and tokenizer.decode([token]) == BROKEN else None


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    known = [token for token in tokens if 0 <= token < LARGEST_ID]  # decoding raises beyond; others have no text
    return tokenizer.decode(known, skip_special_tokens=True)


def _beyond(beginning: str, whole: str) -> str:
    """What the whole has behind its beginning; behind what the two share, where a later token changed the beginning."""
    if whole.startswith(beginning):
        return whole[len(beginning) :]
    shared = next((n for n, (one, other) in enumerate(zip(beginning, whole, strict=False)) if one != other), len(whole))
    return whole[shared:]
