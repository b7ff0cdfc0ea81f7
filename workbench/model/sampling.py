"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.errors import WorkbenchError

FIRST_LOOK = 512
"""Likeliest tokens that `top_p` considers first, which spares sorting the whole vocabulary."""

COLDEST = torch.finfo(torch.float32).tiny
"""Least temperature above 0; logits are in float32, in which smaller numbers are 0."""


class PromptError(WorkbenchError):
    """An unusable prompt or setting of generation."""


@checked(PromptError)
@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else a sampled one.

    Every row draws from a seeded generator of its own, so that its tokens do not depend on the rows beside it.

    Raises:
        PromptError: a setting out of range.
    """

    temperature: Annotated[Number, Ge(0)] = 0.0
    """Logits are divided by it; 0 is greedy."""
    top_k: Positive | None = None
    """Sample from so many likeliest tokens only."""
    top_p: Annotated[Number, Gt(0), Le(1)] | None = None
    """Sample from the likeliest tokens that together have this probability."""
    seed: Annotated[Natural, Lt(2**62)] = 0

    def generators(self, rows: int) -> list[torch.Generator]:
        """One random number generator for each row, seeded with `seed` + row."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next token of each row, `[batch]` int64, for logits `[batch, vocab]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, COLDEST)
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
