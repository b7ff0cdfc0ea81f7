"""Autoregressive decoding of a batch: the state of its rows, and the cutting of growing texts into pieces."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.model.edits import Group, Run
from workbench.model.kvcache import copy_rows, new_cache
from workbench.model.network import Network


class Decoder:
    """Autoregressive state of some rows: the cache, the run with its edits, the padding.

    Args:
        network: what computes.
        groups: edits for all or some rows, already prepared.
        prompt: `[batch, pos]`, left-padded where `mask` is False.
        mask: `[batch, pos]`, or None without padding.
        max_new_tokens: how many tokens may follow.
    """

    def __init__(
        self, network: Network, groups: Sequence[Group], prompt: Tensor, mask: Tensor | None, max_new_tokens: int
    ):
        self.network = network
        self.mask = mask
        self.lengths = torch.full((len(prompt),), prompt.shape[1]) if mask is None else mask.sum(-1)
        self.run = _run_of(groups, self.lengths)
        self.cache = new_cache(network.config, prompt.shape[1] + max_new_tokens)
        with torch.inference_mode():
            self.logits = network.run(prompt, self.run, mask=mask, cache=self.cache, last=1)[:, -1]

    def feed(self, tokens: Tensor) -> Tensor:
        """Append tokens `[batch, new]`; the logits after each of them, `[batch, new, vocab]`."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.shape)], dim=1)
        with torch.inference_mode():
            logits = self.network.run(tokens, self.run, mask=self.mask, cache=self.cache)
        self.logits = logits[:, -1]
        return logits

    def fork(self, rows: list[int], groups: Sequence[Group]) -> Decoder:
        """Another decoder whose row i continues from what row `rows[i]` of this one has seen, under other edits."""
        twin = copy.copy(self)
        twin.cache = copy_rows(self.cache, rows)
        twin.mask = None if self.mask is None else self.mask[rows]
        twin.lengths, twin.logits = self.lengths[rows], self.logits[rows]
        twin.run = _run_of(groups, twin.lengths)
        return twin


def _run_of(groups: Sequence[Group], lengths: Tensor) -> Run | None:
    return Run(groups, lengths) if any(group.edits for group in groups) else None


class TextStreamer:
    """Cuts a growing text into what each token adds, holding back characters that are not complete yet.

    Args:
        to_text: the text of token ids.
    """

    def __init__(self, to_text: Callable[[Sequence[int]], str]):
        self.to_text = to_text
        self.open: list[int] = []
        self.shown = ""

    def add(self, token: int, last: bool = False) -> str:
        """The text that is certain now and was not before; with the last token, all that is left."""
        self.open.append(token)
        text = self.to_text(self.open)
        if text.endswith("�") and not last:
            return ""
        new = text[len(self.shown) :]
        # keep one token of context, since some tokenizers drop the space of a text's first word
        self.open, self.shown = self.open[-1:], self.to_text(self.open[-1:])
        return new
