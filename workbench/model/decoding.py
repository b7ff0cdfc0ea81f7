"""Autoregressive decoding of a batch: the one loop that chooses tokens, the state of the rows, and text as it grows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.edits import Group, Run
from workbench.model.kvcache import copy_rows, new_cache
from workbench.model.network import Network
from workbench.model.sampling import PromptError, Sampling


def check_causal(network: Network) -> None:
    """Refuse to write with a model that sees later tokens: each new token would change all predictions before it.

    Raises:
        PromptError: the model is not causal.
    """
    if not network.causal:
        raise PromptError(
            "This model's predictions depend on later tokens, so it can't write a text token by token; "
            "give it whole texts, as in model(tokens)."
        )


class Decoder:
    """Autoregressive state of a batch: the key-value cache, the run with its edits, the padding.

    Args:
        network: the network that computes the logits.
        groups: prepared edits, each with the rows that they apply to.
        prompt: token ids `[batch, pos]`, left-padded where `mask` is False.
        mask: bool `[batch, pos]`, or None without padding.
        max_new_tokens: number of positions that the cache reserves behind the prompt.

    Attributes:
        logits: `[batch, vocab]`, of the next token of each row.

    Raises:
        PromptError: a model that is not causal.
    """

    def __init__(
        self, network: Network, groups: Sequence[Group], prompt: Tensor, mask: Tensor | None, max_new_tokens: int
    ):
        check_causal(network)
        self.network = network
        self.mask = mask
        self.lengths = torch.full((len(prompt),), prompt.shape[1]) if mask is None else mask.sum(-1)
        self.run = _run_of(groups, self.lengths)
        self.cache = new_cache(network.config, prompt.shape[1] + max_new_tokens)
        with torch.inference_mode():
            self.logits = network.run(prompt, self.run, mask=mask, cache=self.cache, last=1)[:, -1]

    def feed(self, tokens: Tensor) -> Tensor:
        """Append tokens `[batch, new]`; returns the logits after each of them, `[batch, new, vocab]`."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.shape)], dim=1)
        with torch.inference_mode():
            logits = self.network.run(tokens, self.run, mask=self.mask, cache=self.cache)
        self.logits = logits[:, -1]
        return logits

    def fork(self, rows: list[int], groups: Sequence[Group]) -> Decoder:
        """A decoder whose row i continues row `rows[i]` of this one, under other edits."""
        twin = copy.copy(self)
        twin.cache = copy_rows(self.cache, rows)
        twin.mask = None if self.mask is None else self.mask[rows]
        twin.lengths, twin.logits = self.lengths[rows], self.logits[rows]
        twin.run = _run_of(groups, twin.lengths)
        return twin


@dataclass(frozen=True)
class DecodingStep:
    """One new token for each row of a batch."""

    logits: Tensor
    """`[batch, vocab]`: the logits that the tokens were chosen from."""
    chosen: Tensor
    """`[batch]` int64: the chosen token ids, also of rows that have ended."""
    ended: tuple[bool, ...]
    """Whether each row has ended with this token or before it; such a token is not part of the text."""
    pieces: list[str]
    """The text that each token adds; empty for a row that has ended, for an incomplete character, and without
    `to_text`."""


def decode(
    decoder: Decoder,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    max_new_tokens: int,
    *,
    stop_tokens: Collection[int] = (),
    to_text: Callable[[Sequence[int]], str] | None = None,
) -> Iterator[DecodingStep]:
    """Decode step by step, until every row has ended or has `max_new_tokens` tokens.

    A step is computed when it is asked for; a caller that stops iterating stops the decoding.

    Args:
        decoder: the state after the prompts; it is advanced.
        sampling: how tokens are chosen.
        generators: one source of random numbers for each row.
        max_new_tokens: steps at most.
        stop_tokens: ids that end a row.
        to_text: the text of token ids; None leaves out `pieces`.
    """
    streamers = [None if to_text is None else TextStreamer(to_text) for _ in generators]
    ended = [False] * len(generators)
    for number in range(max_new_tokens):
        last = number == max_new_tokens - 1
        logits = decoder.logits
        chosen = sampling.choose(logits, generators)  # [batch]
        pieces = [""] * len(ended)
        for row, token in enumerate(chosen.tolist()):
            ended[row] = ended[row] or token in stop_tokens
            streamer = streamers[row]
            if streamer is not None and not ended[row]:
                pieces[row] = streamer.add(token, last)
        yield DecodingStep(logits, chosen, tuple(ended), pieces)
        if all(ended):
            return
        if not last:
            decoder.feed(chosen[:, None])


class TextStreamer:
    """Splits a growing text into the part that each token adds, and holds back characters that are incomplete.

    Args:
        to_text: the text of token ids.
    """

    def __init__(self, to_text: Callable[[Sequence[int]], str]):
        self.to_text = to_text
        self.open: list[int] = []
        self.shown = ""

    def add(self, token: int, last: bool = False) -> str:
        """The text that the token completes; with the last token, all text that is left."""
        self.open.append(token)
        text = self.to_text(self.open)
        if text.endswith("�") and not last:
            return ""
        new = text[len(self.shown) :]
        # keep one token of context, since some tokenizers drop the space of a text's first word
        self.open, self.shown = self.open[-1:], self.to_text(self.open[-1:])
        return new


def _run_of(groups: Sequence[Group], lengths: Tensor) -> Run | None:
    return Run(groups, lengths) if any(group.edits for group in groups) else None
