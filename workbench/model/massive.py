"""Massive activations, found by their norm.

Sun et al., "Massive Activations in Large Language Models" (2024), arXiv 2402.17762: a few tokens, the first of a text
and sometimes a delimiter, have activations orders of magnitude larger than the others, of about the same value in all
texts.
"""

from __future__ import annotations

from torch import Tensor

TIMES = 10.0
"""A massive activation's norm is more than so many times the median norm."""


def massive(norms: Tensor) -> Tensor:
    """Which of some activations are massive, bool `[n]`.

    Args:
        norms: the length of each activation of many tokens, `[n]`.
    """
    return norms > TIMES * norms.median() if len(norms) else norms.bool()
