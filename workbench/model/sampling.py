"""How the next token is chosen from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError

FIRST_LOOK = 512
"""Likeliest tokens looked at first for `top_p`, which spares sorting the whole vocabulary."""


class PromptError(WorkbenchError):
    """A prompt or a setting of generation that can't be used."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else sampled from the `top_k` likeliest tokens, and from
    the likeliest ones that together have the probability `top_p`. Every row draws from its own seeded generator, so
    what it draws does not depend on the rows beside it."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature < float("inf"):
            raise PromptError(f"temperature is a number from 0 (greedy) upwards, not {self.temperature!r}.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise PromptError(f"top_k is a whole number from 1, not {self.top_k!r}.")
        if self.top_p is not None and (not isinstance(self.top_p, int | float) or not 0 < self.top_p <= 1):
            raise PromptError(f"top_p is a share above 0 and up to 1, not {self.top_p!r}.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**62:
            raise PromptError(f"seed is a whole number from 0, not {self.seed!r}.")

    def generators(self, rows: int) -> list[torch.Generator]:
        """One source of chance per row, seeded with `seed` + row."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next tokens `[batch]` for logits `[batch, vocab]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # no overflow, however cold
        if self.top_k is None and self.top_p is None:
            return _draw(logits.softmax(-1), generators)
        count = min(self.top_k or FIRST_LOOK, logits.shape[-1])
        best, tokens = logits.topk(count)  # [batch, count], likeliest first
        total = (logits if self.top_k is None else best).logsumexp(-1, keepdim=True)
        shares = (best - total).exp()
        if self.top_p is not None:
            if self.top_k is None and bool((shares.sum(-1) < self.top_p).any()):  # rare: a very flat distribution
                best, tokens = logits.sort(-1, descending=True)
                shares = (best - total).exp()
            before = shares.cumsum(-1) - shares
            shares = shares.masked_fill(before >= self.top_p, 0.0)
        return tokens.gather(-1, _draw(shares, generators)[:, None])[:, 0]


def _draw(shares: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One column per row of `[batch, n]`, in proportion to its share: `[batch]`."""
    drawn = [torch.multinomial(row, 1, generator=chance) for row, chance in zip(shares, generators, strict=True)]
    return torch.cat(drawn)
