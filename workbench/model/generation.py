"""Generated text as data: its tokens with their log-probabilities, read from decoding steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.model.decoding import DecodingStep
from workbench.model.edits import EditError


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """The text that it adds; empty while a character is incomplete."""
    logprob: float
    """Natural logarithm of its probability under the model with its edits, before temperature."""


@dataclass(frozen=True)
class Generation:
    """A generated text."""

    prompt: str
    text: str
    """The new text only."""
    tokens: list[int]
    """Ids of the new tokens, without the one that ended the text."""
    logprobs: list[float]
    """Log-probability in nats of each new token, under the model with its edits."""
    stopped: Literal["end", "length"]
    """`end`: the model ended its turn; `length`: the text has `max_new_tokens` tokens."""


def tokens_of(step: DecodingStep) -> list[Token | None]:
    """The new token of each row; None for a row that has ended."""
    logprobs = step.logits.gather(-1, step.chosen[:, None])[:, 0] - step.logits.logsumexp(-1)  # [batch]
    if not bool(logprobs.isfinite().all()):
        raise EditError(
            "The model computes values here that are not finite: an intervention's value or the model's weights are "
            "too large for its type; lower the value."
        )
    rows = zip(step.chosen.tolist(), step.pieces, logprobs.tolist(), step.ended, strict=True)
    return [None if ended else Token(token, piece, logprob) for token, piece, logprob, ended in rows]


def generations(
    prompts: Sequence[str], steps: Iterable[DecodingStep], to_text: Callable[[Sequence[int]], str]
) -> list[Generation]:
    """Run a decoding to its end.

    Args:
        prompts: the text of each row.
        steps: from `decode`.
        to_text: the text of token ids.
    """
    rows: list[list[Token]] = [[] for _ in prompts]
    ended: Sequence[bool] = [False] * len(prompts)
    for step in steps:
        ended = step.ended
        for row, token in zip(rows, tokens_of(step), strict=True):
            if token is not None:
                row.append(token)
    return [
        Generation(
            prompt,
            to_text([token.id for token in tokens]),
            [token.id for token in tokens],
            [token.logprob for token in tokens],
            "end" if over else "length",
        )
        for prompt, tokens, over in zip(prompts, rows, ended, strict=True)
    ]
