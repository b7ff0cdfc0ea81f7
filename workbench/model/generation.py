"""Generated text as data: its tokens with their log-probabilities, read from decoding steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workbench.core import markup
from workbench.core.display import Rows, Shown
from workbench.model.decoding import DecodingStep


@dataclass(frozen=True)
class Token(Shown):
    """One generated token."""

    id: int
    text: str
    """The text that it adds; empty while a character is incomplete."""
    logprob: float
    """Natural logarithm of its probability under the model with its edits, before temperature."""


@dataclass(frozen=True)
class Generation(Shown):
    """A generated text."""

    prompt: str
    text: str
    """The new text only."""
    tokens: list[int]
    """Ids of the new tokens, without the one that ended the text."""
    logprobs: list[float]
    """Log-probability in nats of each new token, under the model with its edits."""
    stopped: Literal["end", "length"]
    """`end`: the model ended its turn, or wrote a string that stops it; `length`: the text has `max_new_tokens`
    tokens."""

    def _parts(self) -> Iterator[str]:
        yield markup.tokens([self.prompt, self.text], [0.0, 1.0])

    def _facts(self) -> Mapping[str, object]:
        return {"text": self.text, "tokens": len(self.tokens), "stopped": self.stopped}


def tokens_of(step: DecodingStep) -> list[Token | None]:
    """The new token of each row; None for a row that has ended."""
    logits = step.logits.float()  # in 16 bits a sum over the vocabulary is off by tenths of a nat
    logprobs = logits.gather(-1, step.chosen[:, None])[:, 0] - logits.logsumexp(-1)  # [batch]
    rows = zip(step.chosen.tolist(), step.pieces, logprobs.tolist(), step.ended, strict=True)
    return [None if ended else Token(token, piece, logprob) for token, piece, logprob, ended in rows]


def streamed(steps: Iterable[DecodingStep]) -> Iterator[Token]:
    """The tokens of a decoding of one row, as they come; one inside a character comes with the token behind it.

    Args:
        steps: from `decode`.
    """
    waiting: Token | None = None
    for step in steps:
        (token,) = tokens_of(step)
        if waiting is not None:
            # where the row ends inside a character, what was held back is the text of its last token
            yield waiting if token is not None else replace(waiting, text=step.pieces[0])
        waiting = token if step.held[0] else None
        if waiting is None and token is not None:
            yield token
    if waiting is not None:
        yield waiting


def generations(
    prompts: Sequence[str],
    rows: Sequence[Sequence[int]],
    steps: Iterable[DecodingStep],
    to_text: Callable[[Sequence[int], Sequence[int]], str],
) -> Rows[Generation]:
    """Run a decoding to its end.

    Args:
        prompts: the text of each row's prompt.
        rows: the token ids of each row's prompt.
        steps: from `decode`.
        to_text: the text that token ids add behind others.
    """
    written: list[list[Token]] = [[] for _ in prompts]
    complete: Sequence[bool] = [False] * len(prompts)
    for step in steps:
        complete = step.complete
        for row, token in zip(written, tokens_of(step), strict=True):
            if token is not None:
                row.append(token)
    return Rows(
        Generation(
            prompt,
            to_text([token.id for token in tokens], before),
            [token.id for token in tokens],
            [token.logprob for token in tokens],
            "end" if over else "length",
        )
        for prompt, before, tokens, over in zip(prompts, rows, written, complete, strict=True)
    )
