"""The numbers that a change of a prompt's run moves: logit difference, probability, KL, or one of the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from workbench.circuits.alignment import AlignedPair
from workbench.circuits.errors import TaskError
from workbench.evaluation.losses import kl_divergence

Metric = Literal["logit_difference", "probability", "kl"] | Callable[[Tensor], Tensor]
"""`log P(right) - log P(wrong)` in nats; P(right); KL(clean prompt ‖ run) in nats; or a function from logits
`[n, vocab]` in float32 to numbers `[n]`."""
Score = Callable[[Tensor], Tensor]
"""From logits `[n, vocab]` in float32 at the last position to numbers `[n]`."""


def metric_name(metric: Metric) -> str:
    """The name of a metric, for results."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", "own metric"))


def score_of(metric: Metric, pair: AlignedPair, clean: Tensor, corrupted: Tensor) -> Score:
    """A metric of one pair.

    Args:
        metric: see `Metric`.
        pair: the prompts.
        clean: logits behind the clean prompt, `[vocab]`.
        corrupted: logits behind the corrupted one.

    Raises:
        TaskError: no answers are named and both prompts have the same likeliest token.
    """
    if not isinstance(metric, str):
        return _own(metric)
    if metric == "kl":
        return lambda logits: kl_divergence(clean.expand_as(logits)[:, None], logits[:, None])[:, 0]
    right = torch.tensor(pair.answers or (int(clean.argmax()),), device=clean.device)
    if metric == "probability":
        return lambda logits: logits.softmax(-1)[:, right].sum(-1)
    wrong = torch.tensor(pair.wrong or (int(corrupted.argmax()),), device=clean.device)
    if set(right.tolist()) & set(wrong.tolist()):
        raise TaskError(
            "Both prompts of a pair have the same likeliest next token, so there is no difference of answers; name "
            'answers and wrong ones, or choose metric="kl".'
        )
    return lambda logits: logits[:, right].logsumexp(-1) - logits[:, wrong].logsumexp(-1)


def _own(metric: Callable[[Tensor], Tensor]) -> Score:
    def score(logits: Tensor) -> Tensor:
        numbers = metric(logits)
        if not isinstance(numbers, Tensor) or numbers.shape != logits.shape[:1]:
            shape = list(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
            raise TaskError(f"A metric takes logits [n, vocab] and returns numbers [n], not {shape}.")
        return numbers

    return score
