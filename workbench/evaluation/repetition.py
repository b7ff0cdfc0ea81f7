"""How much of a text repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.core.checks import Natural, Positive, checked
from workbench.evaluation.errors import EvaluationError


@checked(EvaluationError)
def repetition(tokens: Sequence[Natural], n: Positive = 3) -> float:
    """The share of a text's n-grams that occur earlier in it, from 0 to 1; 0 for a text with fewer than two n-grams.

    Args:
        tokens: token ids of one text.
        n: tokens of an n-gram; `1 - repetition(tokens, 2)` is the share of distinct pairs.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
