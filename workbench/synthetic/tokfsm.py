"""TokFSM: the language of a random finite state machine, so that the truth about a model of it is known.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230, section 3: each state has a few outgoing
edges, all equally likely, and is written as a fixed number of digits. A text is a walk: BOS, then the digits of one
state after another, cut at the length of the context.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, Wholes, checked
from workbench.corpus import Corpus, CorpusError, TokenBatch
from workbench.corpus.batching import Model


@checked(CorpusError)
@dataclass(frozen=True)
class TokFSM:
    """A random finite state machine and its texts.

    Args:
        states: number of states.
        edges: outgoing edges of each state, to different states.
        digits: number of digits that a state is written with.
        base: of the digits; token `base` is BOS.
        seed: of the edges.

    Raises:
        CorpusError: a number out of range, more edges than states, or more states than the digits can write.
    """

    states: Positive = 100
    edges: Positive = 10
    digits: Positive = 2
    base: Positive = 10
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.edges > self.states:
            raise CorpusError(f"A state can't have {self.edges:,} edges to {self.states:,} states.")
        if self.states > self.base**self.digits:
            raise CorpusError(f"{self.states:,} states can't be written with {self.digits} digits of base {self.base}.")

    @property
    def n_vocab(self) -> int:
        """Number of tokens: the digits and BOS."""
        return self.base + 1

    @property
    def bos(self) -> int:
        """The id of the token at the beginning of every text."""
        return self.base

    @functools.cached_property
    def successors(self) -> Tensor:
        """The states that follow each state, ascending: `[states, edges]`."""
        chance = np.random.default_rng([self.seed, 7])
        rows = [np.sort(chance.choice(self.states, self.edges, replace=False)) for _ in range(self.states)]
        return torch.from_numpy(np.stack(rows))

    @functools.cached_property
    def follows(self) -> Tensor:
        """Whether a state (column) may follow another (row): bool `[states, states]`."""
        allowed = torch.zeros(self.states, self.states, dtype=torch.bool)
        return allowed.scatter_(1, self.successors, True)

    @property
    def hash(self) -> str:
        """SHA-256 over the edges, in hex."""
        return hashlib.sha256(repr((self.digits, self.base)).encode() + self.successors.numpy().tobytes()).hexdigest()

    @checked(CorpusError)
    def walk(self, rows: Positive, length: Positive, seed: Natural | Sequence[Natural]) -> Tensor:
        """Random walks, from states drawn at random: `[rows, length]`."""
        chance = np.random.default_rng(seed)
        chosen = torch.from_numpy(chance.integers(0, self.edges, (rows, length)))
        at = torch.from_numpy(chance.integers(0, self.states, rows))
        visited = torch.empty(rows, length, dtype=torch.long)
        for step in range(length):
            visited[:, step] = at
            at = self.successors[at, chosen[:, step]]
        return visited

    @checked(CorpusError)
    def write(self, visited: Wholes) -> Tensor:
        """States `[rows, length]` as tokens, BOS first: `[rows, 1 + length * digits]`."""
        powers = self.base ** torch.arange(self.digits - 1, -1, -1)
        tokens = (visited[..., None] // powers % self.base).flatten(1)  # [rows, length * digits]
        return torch.nn.functional.pad(tokens, (1, 0), value=self.bos)

    @checked(CorpusError)
    def read(self, tokens: Wholes) -> Tensor:
        """The states of tokens, the inverse of `write`: `[rows, length]`.

        Digits that are no state give -1; a state that is not complete at the end is left out.
        """
        body = tokens[:, 1:]
        whole = body.shape[1] // self.digits * self.digits
        parts = body[:, :whole].unflatten(1, (-1, self.digits))
        numbers = (parts * self.base ** torch.arange(self.digits - 1, -1, -1)).sum(-1)
        return torch.where((parts < self.base).all(-1) & (numbers < self.states), numbers, -1)

    @checked(CorpusError)
    def corpus(self, texts: Positive = 800, length: Positive = 63, seed: Natural = 3) -> Corpus:
        """A corpus of walks of `length` states, such as for a feature index."""
        walks = self.write(self.walk(texts, length, [self.seed, 29, seed]))[:, 1:].tolist()
        return Corpus(["".join(map(self._word, walk)) for walk in walks], f"{texts} walks", {"machine": self.hash})

    def _word(self, digit: int) -> str:
        """A digit as text."""
        return f"{digit:x}" if self.base <= 16 else f"[{digit}]"

    @checked(CorpusError)
    def batches(
        self,
        model: Model,
        context: Annotated[Integer, Ge(2)] = 128,
        batch: Positive = 16,
        tokens: Positive | None = None,
        seed: Natural = 0,
        *,
        repeat: bool = False,
        shard: tuple[Natural, Positive] = (0, 1),
    ) -> Iterator[TokenBatch]:
        """Batches of texts of `context` tokens, the same for the same arguments; settings as in `Corpus.batches`.

        Without `tokens` they never end, whether or not `repeat` is True.

        Raises:
            CorpusError: a context longer than the model's, or a number out of range.
        """
        if context < 2 or context > model.network.n_ctx or batch < 1:
            raise CorpusError(f"context is a number from 2 to {model.network.n_ctx:,}, not {context!r}.")
        rank, world = shard
        mask = torch.ones(batch, context, dtype=torch.bool)
        content = mask.clone()
        content[:, 0] = False
        positions = (torch.arange(context) - 1).expand(batch, -1)
        left = tokens
        for number in itertools.count(rank, world):
            texts = self.write(self.walk(batch, -(-(context - 1) // self.digits), [self.seed, 11, seed, number]))
            yield TokenBatch(texts[:, :context], mask, content, torch.arange(batch) + number * batch, positions)
            if left is not None:
                left -= int(content.sum())
                if left <= 0:
                    return

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer with one token for each digit; BOS, `<s>`, is put in front of every text."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        words = {self._word(digit): digit for digit in range(self.base)} | {"<s>": self.bos}
        inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
        inner.decoder = decoders.Fuse()  # type: ignore[assignment]
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", self.bos)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<s>")

    @checked(CorpusError)
    def transition_accuracy(
        self, model: Callable[..., Tensor], walks: Positive = 512, context: Positive = 128, seed: Natural = 1
    ) -> float:
        """Share of walks after which the model, decoding greedily behind a whole state, writes an allowed successor.

        The state is drawn at random for each walk, so that at least one whole state precedes and one fits behind it.
        """
        return float(self.transitions(model, walks, context, seed).double().mean())

    @checked(CorpusError)
    @torch.inference_mode()
    def transitions(
        self, model: Callable[..., Tensor], walks: Positive = 512, context: Positive = 128, seed: Natural = 1
    ) -> Tensor:
        """For each walk, whether the model continues along an edge: bool `[walks]`; see `transition_accuracy`."""
        most = (context - 1) // self.digits - 1  # states before the one to write
        visited = self.walk(walks, most, [self.seed, 13, seed])
        lengths = torch.from_numpy(np.random.default_rng([self.seed, 17, seed]).integers(1, most + 1, walks))
        tokens = torch.nn.functional.pad(self.write(visited), (0, self.digits), value=0)
        rows = torch.arange(walks)
        written = torch.zeros(walks, dtype=torch.long)
        for digit in range(self.digits):
            place = lengths * self.digits + digit  # of the last written token
            chosen = torch.cat(
                [
                    model(part)[torch.arange(len(part)), at].argmax(-1)
                    for part, at in zip(tokens.split(128), place.split(128), strict=True)
                ]
            )
            tokens[rows, place + 1] = chosen
            written = written * self.base + chosen.clamp(max=self.base - 1)
            written = torch.where(chosen < self.base, written, -(10**9))
        valid = (written >= 0) & (written < self.states)
        return valid & self.follows[visited[rows, lengths - 1], written.clamp(0, self.states - 1)]
