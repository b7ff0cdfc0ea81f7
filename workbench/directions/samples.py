"""Activations of texts at hook points, one row for each text or for each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.directions.errors import DirectionError
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt

Position = Literal["last", "mean", "all"]
"""Which of a text's tokens make its samples: the last, the mean over all, or each of them."""
TOKENS_AT_ONCE = 2048
"""Tokens of a run at most, padding included, unless one text alone is longer."""


@dataclass(frozen=True)
class Samples:
    """Activations of texts, on the processor in float32."""

    values: dict[str, Tensor]
    """By hook point, `[samples, d]`."""
    texts: Tensor
    """The number of each sample's text, `[samples]`, rising."""
    ids: Tensor
    """The token at each sample, `[samples]`; the text's last one for "mean"."""
    copies: Tensor
    """The number of the first text with the same tokens as each text, `[texts]`: its own where there is none before."""


def gather(
    model: LanguageModel,
    texts: Sequence[Prompt],
    hook_points: Sequence[str],
    position: Position = "last",
    progress: Progress | None = None,
) -> Samples:
    """The activations of texts at hook points, each text run once, under the interventions in force.

    Args:
        model: the model.
        texts: texts, chat prompts or token ids `[pos]`.
        hook_points: places whose activations are vectors `[d]`.
        position: the tokens that make samples. A token that the tokenizer puts in front of a text counts only where
            the text has no other.
        progress: told the share that is done.

    Raises:
        DirectionError: no text, or a hook point that holds no vectors.
        HookPointError, PromptError: the model lacks a hook point, or can't read a text.
    """
    for name in hook_points:
        if len(model.hook_points[name].shape) != 1:
            raise DirectionError(f"{name} holds no vector for each token; choose another hook point.")
    rows = [_row(model, text) for text in texts]
    parts: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(rows) for name in hook_points}
    done = 0
    for batch in batches_of([len(row) for row in rows], model.network.causal):
        tokens = torch.zeros(len(batch), max(len(rows[one]) for one in batch), dtype=torch.long)
        for place, one in enumerate(batch):
            tokens[place, : len(rows[one])] = torch.tensor(rows[one])
        with torch.inference_mode():
            seen = model.capture(tokens.to(model.device), list(hook_points))
        for name in hook_points:
            for place, one in enumerate(batch):
                parts[name][one] = _reduced(seen[name][place, : len(rows[one])], position, _start(model, rows[one]))
        done += len(batch)
        if progress:
            progress(done / len(rows), "Reading the texts")
    counts = [len(rows[one]) - _start(model, rows[one]) if position == "all" else 1 for one in range(len(rows))]
    last = [row[-count:] for row, count in zip(rows, counts, strict=True)]
    return Samples(
        {name: torch.cat(of) for name, of in parts.items()},
        torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
        torch.tensor([token for row in last for token in row]),
        _copies(rows),
    )


def _copies(rows: Sequence[Sequence[int]]) -> Tensor:
    first: dict[tuple[int, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(row), number) for number, row in enumerate(rows)])


def _row(model: LanguageModel, text: Prompt) -> list[int]:
    tokens = model.as_tokens(text)
    if len(tokens) != 1:
        raise DirectionError(f"A text is one row of tokens, not {len(tokens)}; give several texts as a list.")
    return tokens[0].tolist()


def _start(model: LanguageModel, row: Sequence[int]) -> int:
    """The number of tokens in front of a text that the tokenizer puts there."""
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return int(len(row) > 1 and bos is not None and row[0] == bos)


def batches_of(lengths: Sequence[int], causal: bool) -> Iterator[list[int]]:
    """The numbers of texts that run together: of like lengths, padded on the right where no token sees later ones."""
    batch: list[int] = []
    for one in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else 0
        full = (len(batch) + 1) * longest > TOKENS_AT_ONCE
        if batch and (full or (not causal and lengths[one] != longest)):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _reduced(x: Tensor, position: Position, start: int) -> Tensor:
    """A text's activations `[pos, d]` as samples `[samples, d]`."""
    own = x[start:].float()
    wanted = {"last": lambda: own[-1:], "mean": lambda: own.mean(0, keepdim=True), "all": lambda: own}[position]()
    return wanted.cpu().clone()
