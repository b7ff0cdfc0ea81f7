"""Texts as batches of tokens: cut into windows, sorted by length, padded where the model is causal.

Texts are never joined: each row of a batch is one window of one text, behind the tokenizer's BOS token where it has
one. The first position of a window is an attention sink, with activations a hundred times larger than elsewhere (norm
25,000 against 180 in the middle of the default model), whatever token stands there; so it never counts. A tokenizer
with BOS loses no word by that.

Padding is on the right, where no token of a causal model sees it, so that no run takes a mask. A model that is not
causal gets rows of one length only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from workbench.core.checks import checked
from workbench.core.display import Shown
from workbench.core.vocabulary import beyond_vocabulary, special_tokens
from workbench.corpus.reading import CorpusError

TEXTS_TOGETHER, CHARACTERS_TOGETHER = 64, 500_000
"""Texts that the tokenizer gets at once, and their characters; a longer text goes alone."""
LONGEST_TEXT = 5_000_000
"""Characters of a text that is cut into tokens; a tokenizer takes some 200 bytes of memory for each."""
BATCHES_SORTED_TOGETHER = 16
"""Batches whose windows are sorted by length together."""


@runtime_checkable
class Model(Protocol):
    """A model with a tokenizer, as far as texts need one."""

    tokenizer: Any
    network: Any
    name: str
    device: Any


@dataclass(frozen=True)
class TokenBatch(Shown):
    """Windows of texts as tokens on the model's device, padded on the right. Unpacks as `tokens, mask = batch`."""

    tokens: Tensor
    """`[batch, pos]` int64; 0 in the padding."""
    mask: Tensor
    """`[batch, pos]` bool, False in the padding."""
    content: Tensor
    """`[batch, pos]` bool, the tokens that count: False in the padding, on special tokens and at the first position."""
    texts: Tensor
    """`[batch]` int64: which text of the corpus a row is from."""
    positions: Tensor
    """`[batch, pos]` int64: which token of its whole text this is; -1 on BOS and in the padding."""

    def __iter__(self) -> Iterator[Tensor]:
        yield self.tokens
        yield self.mask


@dataclass
class Window:
    """A part of a text."""

    epoch: int
    """How often all texts have been used before."""
    text: int
    """Index of the text."""
    start: int
    """Its first token in the text."""
    ids: list[int]

    def shorten(self, left: int, specials: frozenset[int], first: bool) -> int:
        """Keep at most `left` tokens that count; returns how many of `left` remain.

        Args:
            left: tokens.
            specials: ids that do not count.
            first: whether the window's first token stands at the first position, which does not count.
        """
        for place, token in enumerate(self.ids):
            left -= token not in specials and not (first and place == 0)
            if left == 0:
                self.ids = self.ids[: place + 1]
                break
        return left


def windows_of(
    texts: Sequence[str],
    model: Any,
    room: int,
    *,
    tokens: int | None,
    seed: int,
    shuffle: bool,
    repeat: bool,
    prefixed: bool,
) -> Iterator[Window]:
    """Windows of at most `room` tokens, in the order of the texts; the last one is cut so that `tokens` is exact.

    Args:
        texts: the texts.
        model: a model with a tokenizer.
        room: tokens of a window at most.
        tokens: end after so many tokens that count; None for all.
        seed: of the order of the texts.
        shuffle: mix the texts.
        repeat: begin again, in another order, after the last text.
        prefixed: whether a BOS token will stand in front of each window.
    """
    specials = special_ids(model)
    left = tokens
    for epoch in itertools.count():
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(texts)) if shuffle else np.arange(len(texts))
        for chunk in together(order.tolist(), texts):
            for text, ids in zip(chunk, tokenize(model, [texts[text] for text in chunk]), strict=True):
                for window in cut(epoch, text, ids, room):
                    if left is not None:
                        left = window.shorten(left, specials, not prefixed)
                    yield window
                    if left == 0:
                        return
        if not repeat:
            return


def together(order: Sequence[int], texts: Sequence[str], most: int = TEXTS_TOGETHER) -> Iterator[Sequence[int]]:
    """The numbers of texts in the given order, cut into groups that the tokenizer gets at once."""
    first, characters = 0, 0
    for place, text in enumerate(order):
        characters += len(texts[text])
        if place > first and (place - first == most or characters > CHARACTERS_TOGETHER):
            yield order[first:place]
            first, characters = place, len(texts[text])
    if first < len(order):
        yield order[first:]


def cut(epoch: int, text: int, ids: list[int], room: int) -> Iterator[Window]:
    """The windows of one text, of about equal length."""
    parts = -(-len(ids) // room)
    for part in range(parts):
        begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
        yield Window(epoch, text, begin, ids[begin:end])


def batched(
    windows: Iterator[Window], model: Any, batch: int, chance: np.random.Generator | None, bos: bool
) -> Iterator[TokenBatch]:
    """Windows as batches of `batch` rows, those of similar length together.

    Args:
        windows: from `windows_of`.
        model: a model with a tokenizer.
        batch: rows at most.
        chance: mixes the batches; None keeps them in order.
        bos: put the tokenizer's BOS token, if it has one, in front of every window.
    """
    specials = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    prefix = [token for token in [bos_id(model)] if bos and token is not None]
    require_known(model, prefix)
    for _, of_epoch in itertools.groupby(windows, key=lambda window: window.epoch):
        while together := list(itertools.islice(of_epoch, batch * BATCHES_SORTED_TOGETHER)):
            together.sort(key=lambda window: len(window.ids))
            batches = _split(together, batch, padded=model.network.causal)
            order = np.arange(len(batches))
            for number in (order if chance is None else chance.permutation(order)).tolist():
                yield _pad(batches[number], prefix, specials, model.device)


def _split(windows: Sequence[Window], batch: int, *, padded: bool) -> list[Sequence[Window]]:
    """Windows, sorted by length, in batches of at most `batch`; of equal length where they are not to be padded."""
    alike = [windows] if padded else [list(one) for _, one in itertools.groupby(windows, lambda one: len(one.ids))]
    return [one[start : start + batch] for one in alike for start in range(0, len(one), batch)]


def _pad(windows: Sequence[Window], prefix: list[int], specials: Tensor, device: torch.device) -> TokenBatch:
    longest = max(len(window.ids) for window in windows) + len(prefix)
    tokens = torch.tensor([prefix + w.ids + [0] * (longest - len(prefix) - len(w.ids)) for w in windows])
    column = torch.arange(longest) - len(prefix)  # [pos]
    lengths = torch.tensor([len(window.ids) for window in windows])
    mask = column < lengths[:, None]  # [batch, pos]
    positions = torch.tensor([window.start for window in windows])[:, None] + column
    content = mask & ~torch.isin(tokens, specials) & (torch.arange(longest) > 0)
    texts = torch.tensor([window.text for window in windows])
    positions = positions.masked_fill(~mask | (column < 0), -1)
    return TokenBatch(*(one.to(device) for one in (tokens, mask, content, texts, positions)))


@checked(CorpusError)
def special_ids(model: Model) -> frozenset[int]:
    """The ids of special tokens of a model's tokenizer: BOS, padding, marks of turns.

    Raises:
        CorpusError: a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise CorpusError(f"{model.name} was loaded without a tokenizer, which it takes to cut texts into tokens.")
    return special_tokens(model.tokenizer)


def bos_id(model: Any) -> int | None:
    """The id of the tokenizer's BOS token; None if it has none."""
    return model.tokenizer.bos_token_id


def tokenize(model: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without special tokens.

    Raises:
        CorpusError: a token that the model lacks, or a text that is too long.
    """
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_TEXT:
        raise CorpusError(
            f"One of the texts has {longest:,} characters, and at most {LONGEST_TEXT:,} are cut into tokens at once; "
            "cut it into several texts, as passages() does at line breaks."
        )
    rows = model.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
    for ids in rows:
        require_known(model, ids)
    return rows


def require_known(model: Any, ids: Sequence[int]) -> None:
    """Raise `CorpusError` where the model lacks one of these tokens of its tokenizer."""
    complaint = beyond_vocabulary(ids, model.network.vocab_size, model.tokenizer, model.name)
    if complaint:
        raise CorpusError(complaint)
