"""What stands on and around each token of an index: the conditions that rules are made of.

A *slot* gives each row one value, a text: the token, its word, the word before or behind it. A *class* holds on a row
or not. Conditions never look beyond a row's run, the tokens that follow each other in one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from workbench.index.rules.classes import BY_TEXT, EARLIEST, EARLY, FIRST, INSIDE, LINE, QUOTED, SENTENCE
from workbench.index.tokens import TokenTable
from workbench.index.words import folded

NEAR = 16
"""Tokens before a token that count as near; a multiple of 8."""
ENDING = 3
"""Letters of the end of a word."""
SLOT = Literal["token", "word", "before", "behind", "whole", "ending", "near", "class", "next token"]
"""All that a condition may be about: a slot, a class, or the token behind."""
SLOTS: tuple[SLOT, ...] = ("token", "word", "before", "behind", "whole", "ending", "near")
"""`token`: its text as it is; `word`: without case and white space; `before`, `behind`: the word of the neighbouring
token; `whole`: the word that the token is a part of; `ending`: the last letters of that word, of which the token is the
last; `near`: any word among the `NEAR` tokens before it."""


@dataclass(frozen=True)
class Slot:
    """The values of a slot: `codes` `[n_tokens]` are places in `texts`; -1 stands for none."""

    codes: np.ndarray
    texts: list[str]

    def codes_of(self, values: Sequence[str]) -> np.ndarray:
        """The codes of some values; values that no row has are left out."""
        return np.array([self._places[one] for one in values if one in self._places], np.int64)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: place for place, text in enumerate(self.texts)}


class Surroundings:
    """Slots and classes of the tokens of an index.

    Args:
        tokens: the token table.

    Attributes:
        text_of: the number of each row's text in the corpus, `[n_tokens]`.
        starts: the first row of the run of each row, `[n_tokens]`.
        slots: by name, all but `near`, which has the values of `word`.
        flags: by the words of a label, whether a class holds on each row, `[n_tokens]`.
    """

    def __init__(self, tokens: TokenTable):
        self.n = len(tokens)
        self.ids = np.asarray(tokens.ids).astype(np.int64)
        self.text_of, self.position = tokens.places(np.arange(self.n))
        lengths = np.diff(np.append(tokens.runs[:, 0], self.n))
        self.starts = np.repeat(tokens.runs[:, 0].astype(np.int64), lengths)
        self.ends = np.repeat(np.append(tokens.runs[1:, 0], self.n).astype(np.int64), lengths)
        used, place = np.unique(self.ids, return_inverse=True)
        self._place, self._pieces = place, tokens.strings(used)
        self.slots = self._slots()
        self.flags = self._flags()

    def shifted(self, column: np.ndarray, by: int, missing: int = -1) -> np.ndarray:
        """The value of the row `by` places further in the same run; `missing` where there is none."""
        rows = np.arange(self.n) + by
        inside = (rows >= self.starts) & (rows < self.ends)
        moved = np.full(self.n, missing, column.dtype)
        moved[inside] = column[rows[inside]]
        return moved

    def mask(self, slot: str, values: Sequence[str]) -> np.ndarray:
        """Whether a slot has one of some values on each row, `[n_tokens]`."""
        if slot == "class":
            return np.logical_or.reduce([self.flags[one] for one in values if one in self.flags] or [self._none])
        if slot == "next token":
            return self.next_is(self.slots["token"].codes_of(values))
        of = self.slots["word" if slot == "near" else slot]
        table = np.zeros(len(of.texts) + 1, bool)  # the last is of -1
        table[of.codes_of(values)] = True
        here = table[of.codes]
        return self._near(here) if slot == "near" else here

    def next_is(self, codes: np.ndarray) -> np.ndarray:
        """Whether the next token is one of some codes of the slot `token`, `[n_tokens]`."""
        table = np.zeros(len(self.slots["token"].texts) + 1, bool)
        table[codes] = True
        return table[self._next]

    @cached_property
    def _next(self) -> np.ndarray:
        return self.shifted(self.slots["token"].codes, 1)

    def at(self, rows: np.ndarray) -> Places:
        """The same on some rows alone, `[n]`."""
        before = rows[:, None] - np.arange(1, NEAR + 1)
        inside = before >= self.starts[rows][:, None]
        near = np.where(inside, self.slots["word"].codes[np.maximum(before, 0)], -1)
        codes = {name: slot.codes[rows] for name, slot in self.slots.items()}
        return Places(self, codes | {"near": near, "next token": self._next[rows]}, self.flag_table[rows])

    @cached_property
    def flag_names(self) -> list[str]:
        """The classes in the order of the columns of `flag_table`."""
        return list(self.flags)

    @cached_property
    def flag_table(self) -> np.ndarray:
        """The classes as one table, `[n_tokens, classes]`."""
        return np.stack([self.flags[name] for name in self.flag_names], 1)

    @cached_property
    def _none(self) -> np.ndarray:
        return np.zeros(self.n, bool)

    def _near(self, here: np.ndarray) -> np.ndarray:
        """Whether a row with the value stands among the `NEAR` before each row, in its run."""
        rows = np.flatnonzero(here)
        begin, end = rows + 1, np.minimum(rows + NEAR + 1, self.ends[rows])
        change = np.bincount(begin, minlength=self.n + 1) - np.bincount(end, minlength=self.n + 1)
        return np.cumsum(change[:-1]) > 0

    def _slots(self) -> dict[str, Slot]:
        token = _slot(self._pieces, self._place)
        words = [folded(piece).strip() for piece in self._pieces]
        word = _slot(words, self._place)
        whole, ending = self._whole_words()
        return {
            "token": token,
            "word": word,
            "before": Slot(self.shifted(word.codes, -1), word.texts),
            "behind": Slot(self.shifted(word.codes, 1), word.texts),
            "whole": whole,
            "ending": ending,
        }

    def _whole_words(self) -> tuple[Slot, Slot]:
        """The word of several tokens that each row is a part of, and the ending where the row is a word's last."""
        letters = np.array([piece.strip().isalnum() for piece in self._pieces], bool)
        spaced = np.array([piece[:1].isspace() for piece in self._pieces], bool)
        is_word = letters[self._place]
        goes_on = is_word & ~spaced[self._place] & self.shifted(is_word, -1, missing=0)
        self.goes_on = goes_on
        group = np.cumsum(~goes_on) - 1
        first = np.flatnonzero(~goes_on)
        last = np.append(first[1:], self.n) - 1
        texts = [self._pieces[place] for place in self._place.tolist()]
        joined = [
            folded("".join(texts[start : end + 1])).strip() if word else ""
            for start, end, word in zip(first.tolist(), last.tolist(), is_word[first].tolist(), strict=True)
        ]
        several = np.where(last > first, np.arange(len(first)), -1)
        whole = _slot([*joined, ""], np.where(several[group] >= 0, group, len(joined)))
        ends = [text[-ENDING:] if len(text) > ENDING + 1 else "" for text in joined]
        at_last = np.full(self.n, len(joined))
        at_last[last] = np.arange(len(joined))
        return whole, _slot([*ends, ""], at_last)

    def _flags(self) -> dict[str, np.ndarray]:
        own = {name: np.array([of(piece) for piece in self._pieces], bool)[self._place] for name, of in BY_TEXT.items()}
        flags = dict(own)
        for name, column in own.items():
            flags[f"after {name}"] = self.shifted(column, -1, missing=0)
            flags[f"before {name}"] = self.shifted(column, 1, missing=0)
        begins = self.position == self.position.min(initial=0)
        line = flags["after a line break"]
        flags[FIRST] = begins
        flags[SENTENCE] = begins | line | (flags["after the end of a sentence"] & ~self.goes_on)
        flags[LINE] = begins | line
        flags[INSIDE] = self.goes_on
        flags[EARLY] = self.position < EARLIEST
        flags[QUOTED] = self._quoted(own["a quotation mark"])
        return flags

    def _quoted(self, marks: np.ndarray) -> np.ndarray:
        """Whether an odd number of quotation marks stands before a row in its run."""
        counts = np.concatenate([[0], np.cumsum(marks)])
        return (counts[np.arange(self.n)] - counts[self.starts]) % 2 == 1


@dataclass(frozen=True)
class Places:
    """Slots and classes on some rows of an index, where rules are tried."""

    around: Surroundings
    codes: dict[str, np.ndarray]
    """By slot, `[n]`; of `near` `[n, NEAR]`, with -1 for none."""
    flags: np.ndarray
    """`[n, classes]`."""

    def mask(self, slot: str, values: Sequence[str]) -> np.ndarray:
        """Whether a slot has one of some values on each of the rows, `[n]`."""
        if slot == "class":
            either = np.zeros(len(self.flags), bool)
            for one in self.around.flags.keys() & set(values):
                either |= self.flags[:, self.around.flag_names.index(one)]
            return either
        of = self.around.slots[{"near": "word", "next token": "token"}.get(slot, slot)]
        table = np.zeros(len(of.texts) + 1, bool)
        table[of.codes_of(values)] = True
        here = table[self.codes[slot]]
        return np.asarray(here.view(np.uint64).any(1)) if slot == "near" else here  # eight truth values at a time


def _slot(texts: Sequence[str], place: np.ndarray) -> Slot:
    """A slot from a text of each place; the empty text stands for none."""
    known = sorted({*texts} - {""})
    code = {text: number for number, text in enumerate(known)}
    codes = np.array([code.get(text, -1) for text in texts], np.intp)
    return Slot(codes[place], known)
