"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from workbench.core.checks import Natural, Number, Positive, PositiveNumber, checked
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
    repetition_penalty: PositiveNumber = 1.0
    """Logits of tokens that the prompt or the text holds already are divided by it where positive and multiplied with
    it where negative (Keskar et al., "CTRL", 2019, arXiv 1909.05858); 1 changes nothing."""
    min_new_tokens: Natural = 0
    """No token ends the text before it has so many."""
    stop: Sequence[str] = ()
    """The text ends with the token that completes one of these strings; the token stays part of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(self.stop):
            raise PromptError("A string that ends the text has at least one character; leave out the empty one.")

    def generators(self, rows: int) -> list[torch.Generator]:
        """One random number generator for each row, seeded with `seed` + row."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def scores(self, logits: Tensor, seen: Tensor | None, ends: Collection[int]) -> Tensor:
        """The logits `[batch, vocab]` that the next token is chosen from: with the repetition penalty, without ends.

        Args:
            logits: of the model, `[batch, vocab]`.
            seen: bool `[batch, vocab]`, the tokens that are penalised; None for none.
            ends: ids of tokens that can't be chosen.
        """
        if seen is not None:
            penalised = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        if ends:
            logits = logits.index_fill(-1, torch.tensor(sorted(ends), device=logits.device), -torch.inf)
        return logits

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next token of each row, `[batch]` int64, for logits `[batch, vocab]`.

        How many random numbers a row draws depends on its own logits alone.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, COLDEST)
        if self.top_k is None and self.top_p is None:
            return _draw(logits.softmax(-1), generators)
        count = min(self.top_k or FIRST_LOOK, logits.shape[-1])
        best, tokens = logits.topk(count)  # [batch, count], likeliest first
        total = (logits if self.top_k is None else best).logsumexp(-1, keepdim=True)
        shares = (best - total).exp()
        rows, ids = list(shares), list(tokens)
        if self.top_p is not None:
            rows = list(_likeliest(shares, self.top_p))
            short = shares.sum(-1) < self.top_p if self.top_k is None else shares.new_zeros(len(shares))
            for row in short.nonzero()[:, 0].tolist():  # rare: a very flat distribution
                best, ids[row] = logits[row].sort(descending=True)
                rows[row] = _likeliest((best - total[row]).exp(), self.top_p)
        return torch.stack([of[place] for of, place in zip(ids, _draw(rows, generators), strict=True)])


def _likeliest(shares: Tensor, top_p: float) -> Tensor:
    """Shares `[..., n]`, likeliest first, with 0 behind those that together have `top_p`."""
    left_out = shares.cumsum(-1) - shares >= top_p
    left_out[..., 0] = False  # the likeliest stays where top_p is below the smallest number
    return shares.masked_fill(left_out, 0.0)


def _draw(rows: Tensor | Sequence[Tensor], generators: Sequence[torch.Generator]) -> Tensor:
    """One place in each row of `[n]` shares, in proportion to its share: `[batch]`."""
    # on the generators' device, so that one seed draws the same everywhere
    drawn = [
        torch.multinomial(row.to(chance.device), 1, generator=chance)
        for row, chance in zip(rows, generators, strict=True)
    ]
    return torch.cat(drawn).to(rows[0].device)
