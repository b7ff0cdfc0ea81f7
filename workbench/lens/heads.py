"""A head's card: what it attends to over a corpus, how it behaves, and what it writes for a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Shown
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.corpus.batching import TokenBatch
from workbench.lens.attention import (
    Weighted,
    behaviours,
    captured,
    longest_repeat,
    repeated_tokens,
    written_norms,
)
from workbench.lens.errors import LensError
from workbench.lens.ov import FROZEN, Writing
from workbench.lens.tokens import chosen_layers, token_id
from workbench.model.language_model import LanguageModel

Token = str | int
BATCH = 8
"""Windows in one pass."""
COPIED = 5
"""A token is copied where it is among so many that the head promotes most for it."""
SAMPLED = 128
"""Tokens that the copying score is measured on, at most."""


@dataclass(frozen=True)
class AttendedPair(Shown):
    """A query and a key of one window of the corpus."""

    query: str
    key: str
    weight: float
    """The probability, or the norm of what the head writes at the query for the key."""
    text: list[str] = field(repr=False)
    """The tokens of the window up to the query, or to the key where that comes later."""
    query_position: int
    key_position: int


@dataclass(frozen=True)
class WrittenTokens(Shown):
    """What a head writes for one source token, through the LM head."""

    source: str
    promoted: list[str]
    """The tokens with the highest scores, best first."""
    scores: list[float]
    """Theirs; see `HeadCard.frozen`."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadCard(Shown):
    """One attention head; `head_card` returns one."""

    layer: int
    head: int
    pairs: list[AttendedPair]
    """The pairs of different tokens with the largest weights, one for each two tokens; keys at the first position of a
    window are left out, see `at_first`."""
    at_first: float
    """The mean probability at the first position of a window, over the corpus."""
    previous: float
    """The mean probability at the token before, on repeated random tokens, as in `score_heads`."""
    duplicate: float
    """At the earlier occurrence of the same token."""
    induction: float
    """At the token behind that occurrence."""
    writes: list[WrittenTokens]
    """What it writes for each source token."""
    copying: float
    """The share of tokens of the corpus that are among the 5 that the head promotes most for them."""
    copying_chance: float
    """The same for a head that promotes random tokens."""
    tokens: int
    """Of the corpus that were read."""
    frozen: str = FROZEN
    """What is held fixed in `writes` and `copying`."""

    def to_dict(self) -> dict[str, Any]:
        """The card as plain data."""
        return asdict(self)

    def __repr__(self) -> str:
        scores = f"previous {self.previous:.2f}, duplicate {self.duplicate:.2f}, induction {self.induction:.2f}"
        return f"<HeadCard {self.layer}.{self.head}: {scores}, copying {self.copying:.2f}, {len(self.pairs)} pairs>"


@checked(LensError)
def head_card(
    model: LanguageModel,
    layer: Natural,
    head: Natural,
    corpus: Corpus,
    *,
    weighted: Weighted = "pattern",
    sources: Sequence[Token] | None = None,
    top: Positive = 20,
    promoted: Positive = 10,
    tokens: Positive = 2048,
    context: Positive = 64,
    seed: Natural = 0,
    progress: Progress | None = None,
) -> HeadCard:
    """What an attention head attends to over a corpus, how it behaves, and what it writes for a token.

    Args:
        model: the model.
        layer: the head's layer.
        head: its number.
        corpus: texts.
        weighted: weights of the pairs: "pattern" for probabilities, "written" for the norm of what the head adds to the
            stream, as in `read_attention`.
        sources: tokens whose writing is shown, each once; None for the keys of `pairs`.
        top: pairs that are kept.
        promoted: tokens shown of what is written for each source.
        tokens: of the corpus, at most.
        context: positions of a window.
        seed: of the texts that are read, of the random tokens, and of those that copying is measured on.
        progress: told the share that is done.

    Raises:
        LensError: a head that the model lacks, heads that keep no pattern or can't be read alone, a model without a
            final norm or LM head of its own, no source, or one of several tokens.
        CorpusError: texts without tokens, or a context of one position.
    """
    chosen_layers(model, [layer])
    writing = Writing(model, layer)
    if head >= writing.heads:
        raise LensError(f"There is no head {layer}.{head}: layer {layer} has heads 0 to {writing.heads - 1}.")
    if sources is not None and not len(sources):
        raise LensError("There is no source token; name at least one, or leave sources out for the keys of the pairs.")
    given = None if sources is None else list(dict.fromkeys(token_id(model, one) for one in dict.fromkeys(sources)))
    reading = _Reading(model, layer, head, weighted, top)
    for window in corpus.batches(model, context=context, batch=BATCH, tokens=tokens, seed=seed):
        reading.add(window)
        if progress:
            progress(min(1.0, reading.tokens / tokens), f"Reading {reading.tokens:,} of {tokens:,} tokens")
    if not reading.tokens:
        raise LensError("The corpus has no token that counts beside the first of each text; give longer texts.")
    repeated = repeated_tokens(model, longest_repeat(model), 4, None, seed)
    previous, duplicate, induction, _ = behaviours(model, [layer], *repeated)[:, 0, head].tolist()
    return HeadCard(
        layer=layer,
        head=head,
        pairs=reading.pairs(),
        at_first=reading.at_first / reading.tokens,
        previous=previous,
        duplicate=duplicate,
        induction=induction,
        writes=_writes(model, writing, head, given or reading.keys(), promoted),
        copying=float(writing.copying(reading.sample(seed), COPIED, [head])),
        copying_chance=min(1.0, COPIED / len(writing.readout.head)),
        tokens=reading.tokens,
    )


def _writes(
    model: LanguageModel, writing: Writing, head: int, sources: Sequence[int], promoted: int
) -> list[WrittenTokens]:
    if not sources:
        return []
    scores, ids = writing.promoted(sources, head, promoted)
    return [
        WrittenTokens(source, model.token_labels(best), values.tolist())
        for source, best, values in zip(model.token_labels(torch.tensor(sources)), ids, scores, strict=True)
    ]


@dataclass(frozen=True)
class _Found:
    """A pair that may be shown."""

    weight: float
    query_id: int
    key_id: int
    window: Tensor
    query: int
    key: int


class _Reading:
    """What a head attends to, window by window.

    Args:
        model: the model.
        layer: the head's layer.
        head: its number.
        weighted: as in `head_card`.
        top: pairs that are kept.
    """

    def __init__(self, model: LanguageModel, layer: int, head: int, weighted: Weighted, top: int):
        self.model, self.layer, self.head, self.weighted, self.top = model, layer, head, weighted, top
        self.tokens = 0
        self.at_first = 0.0
        """The sum of the probabilities at the first position."""
        self._best: dict[tuple[int, int], _Found] = {}
        self._seen: dict[int, None] = {}

    def add(self, window: TokenBatch) -> None:
        """Take a batch of windows."""
        weights = captured(self.model, window.tokens, [self.layer], "hook_pattern")[0].float()
        pattern = weights[:, self.head]  # [batch, query, key]
        content = window.content.to(pattern.device)
        self.tokens += int(content.sum())
        self.at_first += float((pattern[:, :, 0] * content).sum())
        self._seen |= dict.fromkeys(window.tokens[window.content].tolist())
        if self.weighted == "written":
            norms, scales = written_norms(self.model, window.tokens, [self.layer], [weights])[0]
            pattern = pattern * norms[:, self.head, None] * (1.0 if scales is None else scales)
        pattern = pattern * (content[:, :, None] & content[:, None])
        size = pattern.shape[1]
        for value, place in _best_of_each(pattern, window.tokens.to(pattern.device), self.top):
            row, inside = divmod(place, size * size)
            query, key = divmod(inside, size)
            ids = window.tokens[row].cpu()
            pair = int(ids[query]), int(ids[key])
            if value > 0 and (pair not in self._best or value > self._best[pair].weight):
                self._best[pair] = _Found(value, *pair, ids[: max(query, key) + 1], query, key)
        kept = sorted(self._best.values(), key=lambda one: -one.weight)[: self.top]
        self._best = {(one.query_id, one.key_id): one for one in kept}

    def pairs(self) -> list[AttendedPair]:
        """The pairs with the largest weights, best first."""
        found = []
        for one in self._best.values():
            text = self.model.token_labels(one.window)
            found.append(AttendedPair(text[one.query], text[one.key], one.weight, text, one.query, one.key))
        return found

    def keys(self) -> list[int]:
        """The tokens of the keys of the pairs, each once."""
        return list(dict.fromkeys(one.key_id for one in self._best.values()))

    def sample(self, seed: int) -> list[int]:
        """Tokens of the corpus, each once, in the order of a draw."""
        seen = sorted(self._seen)
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))
        return [seen[place] for place in order[:SAMPLED].tolist()]


def _best_of_each(weights: Tensor, tokens: Tensor, top: int) -> list[tuple[float, int]]:
    """The largest weight of each two tokens, for the `top` largest: weights and places in the flattened tensor.

    Args:
        weights: `[batch, query, key]`.
        tokens: `[batch, pos]`.
        top: two tokens that are kept.
    """
    values, places = weights.flatten().sort(descending=True, stable=True)
    codes = tokens[:, :, None] * (int(tokens.max()) + 1) + tokens[:, None]  # one number for each two tokens
    kinds, inverse = codes.flatten()[places].unique(return_inverse=True)
    order = torch.arange(len(places), device=places.device)
    first = torch.full_like(kinds, len(places)).scatter_reduce(0, inverse, order, "amin").sort().values[:top]
    return list(zip(values[first].tolist(), places[first].tolist(), strict=True))
