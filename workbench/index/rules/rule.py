"""A rule: one or two conditions on a token and what stands around it, and how it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Len
from typing_extensions import TypedDict

from workbench.core.forms import parse_json
from workbench.core.text import visible
from workbench.index.layout import FeatureIndexError
from workbench.index.rules.surroundings import NEAR, SLOT, Places, Surroundings

JOIN = Literal["and", "or"]
KINDS: Mapping[str, str] = {
    "token": "token",
    "word": "word",
    "before": "neighbour",
    "behind": "what comes next",
    "whole": "word",
    "ending": "ending",
    "near": "neighbourhood",
    "class": "class",
    "next token": "promoted tokens",
}
"""By slot, the kind of label."""
SHOWN = 6
"""Values that a label names; further ones are counted."""
PHRASES: Mapping[str, tuple[str, str]] = {
    "token": ("the token {}", "the tokens {}"),
    "word": ("the word {}", "the words {}"),
    "before": ("after {}", "after {}"),
    "behind": ("before {}", "before {}"),
    "whole": ("a part of the word {}", "a part of the words {}"),
    "ending": ("a word that ends in {}", "words that end in {}"),
    "near": (f"within {NEAR} tokens after {{}}", f"within {NEAR} tokens after {{}}"),
    "class": ("{}", "{}"),
    "next token": ("promotes {}", "promotes {}"),
}
"""By slot, how one value and how several read."""


class SavedCondition(TypedDict):
    """A condition in JSON."""

    slot: SLOT
    values: Annotated[list[str], Len(1, 1000)]


class SavedRule(TypedDict):
    """A rule in JSON."""

    join: JOIN
    conditions: Annotated[list[SavedCondition], Len(1, 2)]


@dataclass(frozen=True)
class Condition:
    """A slot that has one of some values; of the slot `class`, one of some classes that hold."""

    slot: SLOT
    values: tuple[str, ...]

    def __str__(self) -> str:
        one, several = PHRASES[self.slot]
        quoted = self.slot != "class"
        names = [f"“{visible(value)}”" if quoted else value for value in self.values[:SHOWN]]
        more = len(self.values) - SHOWN
        listed = ", ".join(names) + (f" or {more} more" if more > 0 else "")
        return (one if len(self.values) == 1 else several).format(listed)


@dataclass(frozen=True)
class Rule:
    """Conditions that hold together, or of which one holds."""

    conditions: tuple[Condition, ...]
    join: JOIN = "and"

    def __str__(self) -> str:
        return f" {self.join} ".join(map(str, self.conditions))

    @property
    def kind(self) -> str:
        """The kind of label that it makes."""
        return KINDS[self.conditions[0].slot] if len(self.conditions) == 1 else "combination"

    @property
    def length(self) -> float:
        """How much it says: doublings of the values of each condition, and one for a second condition."""
        return sum(float(np.log2(len(one.values))) for one in self.conditions) + 2 * (len(self.conditions) - 1)

    def mask(self, around: Surroundings | Places) -> np.ndarray:
        """Whether it holds on each row of an index, or on each of some places, `[n]`."""
        return joined([around.mask(one.slot, one.values) for one in self.conditions], self.join)

    def to_json(self) -> SavedRule:
        """The rule as plain data."""
        return {
            "join": self.join,
            "conditions": [{"slot": one.slot, "values": list(one.values)} for one in self.conditions],
        }

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """The rule in the JSON of `to_json`.

        Raises:
            FeatureIndexError: the text is no rule.
        """
        saved = parse_json(text, SavedRule, FeatureIndexError, "the rule of a label")
        return cls(tuple(Condition(one["slot"], tuple(one["values"])) for one in saved["conditions"]), saved["join"])


def joined(masks: Sequence[np.ndarray], join: JOIN) -> np.ndarray:
    """Masks that hold together, or of which one holds, `[n_tokens]`."""
    return (np.logical_and if join == "and" else np.logical_or).reduce(masks)
