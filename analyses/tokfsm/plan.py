"""Settings of the study of TokFSM, and the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS, HEADS, D_MODEL, CONTEXT = 4, 4, 128, 128
PUBLISHED = {
    "plain": (1.179, 46.36, 96.77),
    "attention": (1.18, 46.33, 96.39),
    "both": (1.269, 45.27, 63.65),
}
"""Loss in the paper, and accuracy of the next token and of the next state in percent."""
ORDER = ["plain", "attention", "mlp", "both"]
"""The models, in the order of the table."""


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    plain_tokens: int = 30_000_000
    book_tokens: int = 1_500_000
    batch: int = 16
    lr: float = 1e-3
    book_lr: float = 1e-4
    """Learning rate of a model that learns together with its codebooks."""
    frozen: tuple[str, ...] = ("mlp", "both")
    """Models whose codebooks alone learn. Otherwise the MLPs' outputs grow away from their codes, since cosine
    similarity ignores length: with book_lr the loss rises from 1.23 to 1.30 in 600,000 tokens."""
    frozen_tokens: int = 600_000
    head_codes: int = 2_000
    """Codes of each head."""
    mlp_codes: int = 10_000
    """Codes of each MLP output."""
    measured: int = 131_072
    """Tokens of the loss and of accuracy."""
    walks: int = 512
    """Walks on which states are counted and continued."""
    pairs: int = 1_000
    """Pairs of a walk and a target state, for steering."""
    seed: int = 0


SMALLEST = Plan(measured=1024, walks=16, pairs=20)
"""Checks that the study runs."""
