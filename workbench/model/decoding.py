"""Autoregressive decoding of a batch: the one loop that chooses tokens, and the state of the rows."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.blame import NotFiniteError, first_not_finite
from workbench.model.edits import Group, Run
from workbench.model.kvcache import copy_rows, new_cache
from workbench.model.network import Network
from workbench.model.sampling import PromptError, Sampling
from workbench.model.token_texts import StringFinder, TextStreamer

NOT_FINITE = "The model computes values here that are not finite numbers."


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
        self.prompt = prompt
        self.mask = mask
        self.lengths = prompt.new_full((len(prompt),), prompt.shape[1]) if mask is None else mask.sum(-1)
        self.run = _run_of(groups, self.lengths)
        self.cache = new_cache(network.config, prompt.shape[1] + max_new_tokens)
        with torch.inference_mode():
            self.logits = network.run(prompt, self.run, mask=mask, cache=self.cache, last=1)[:, -1]

    def seen(self) -> Tensor:
        """The tokens that each row's prompt holds: bool `[batch, vocab]`."""
        found = torch.zeros_like(self.logits, dtype=torch.bool)
        for row, ids in enumerate(self.prompt):
            found[row, ids if self.mask is None else ids[self.mask[row, : len(ids)]]] = True
        return found

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
        twin.prompt, twin.lengths, twin.logits = self.prompt[rows], self.lengths[rows], self.logits[rows]
        twin.run = _run_of(groups, twin.lengths)
        if twin.run is not None and self.run is not None:
            twin.run.conditions = self.run.conditions.continued(rows)
        return twin


@dataclass(frozen=True)
class DecodingStep:
    """One new token for each row of a batch."""

    logits: Tensor
    """`[batch, vocab]`: the logits that the tokens were chosen from."""
    chosen: Tensor
    """`[batch]` int64: the chosen token ids, also of rows that have ended."""
    ended: tuple[bool, ...]
    """Whether each row has ended before this token or with it; such a token is not part of the text."""
    complete: tuple[bool, ...]
    """Whether each row has ended, or ends behind this token with one of the strings that stop it."""
    pieces: list[str]
    """The text that each token adds; empty for an incomplete character, and without streamers. For the token that ends
    a row it is what was held back until then; behind it, it is empty."""
    held: tuple[bool, ...]
    """Whether text of a row is held back, since it ends inside a character."""


def decode(
    decoder: Decoder,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    max_new_tokens: int,
    *,
    stop_tokens: Collection[int] = (),
    streamers: Sequence[TextStreamer] = (),
) -> Iterator[DecodingStep]:
    """Decode step by step, until every row has ended or has `max_new_tokens` tokens.

    A step is computed when it is asked for; a caller that stops iterating stops the decoding.

    Raises:
        NotFiniteError: logits that are not finite; the call that knows the interventions says which of them it was.

    Args:
        decoder: the state after the prompts; it is advanced.
        sampling: how tokens are chosen.
        generators: one source of random numbers for each row.
        max_new_tokens: steps at most.
        stop_tokens: ids that end a row.
        streamers: for each row, what splits its text into `pieces`; none leaves them empty, and `sampling.stop` unused.
    """
    complete = [False] * len(generators)
    fed: list[Tensor] = []
    finders = [StringFinder(sampling.stop, one.shown) for one in streamers] if sampling.stop else []
    seen = decoder.seen() if sampling.repetition_penalty != 1 else None
    for number in range(max_new_tokens):
        last = number == max_new_tokens - 1
        logits = decoder.logits
        if (row := first_not_finite(logits)) is not None:
            raise NotFiniteError(NOT_FINITE, row, torch.stack(fed, 1) if fed else None)
        scores = sampling.scores(logits, seen, stop_tokens if number < sampling.min_new_tokens else ())
        chosen = sampling.choose(scores, generators)  # [batch]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        pieces, ended = [""] * len(complete), complete.copy()
        for row, token in enumerate(chosen.tolist()):
            if complete[row]:
                continue
            ended[row] = complete[row] = token in stop_tokens
            if streamers:
                pieces[row] = streamers[row].rest() if ended[row] else streamers[row].add(token, last)
            if finders and finders[row].ends_in(pieces[row]):
                complete[row] = True
        held = tuple(one.holds for one in streamers) if streamers else (False,) * len(ended)
        yield DecodingStep(logits, chosen, tuple(ended), tuple(complete), pieces, held)
        if all(complete):
            return
        if not last:
            fed.append(chosen)
            decoder.feed(chosen[:, None])


def _run_of(groups: Sequence[Group], lengths: Tensor) -> Run | None:
    return Run(groups, lengths) if any(group.edits for group in groups) else None
