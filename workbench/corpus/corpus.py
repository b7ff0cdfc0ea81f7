"""Texts, and their way into a model: loading, splitting, cutting into batches of tokens.

A `Corpus` is a list of texts with a name, a licence and a hash. Texts are never joined: each row of a token batch is
one window of one text, behind the tokenizer's BOS token where it has one. That token matters: the first position of a
sequence is an attention sink, with activations a hundred times larger than elsewhere (norm 25,000 against 180 in the
middle of the default model), and it should sit on a token that is masked out, not on a word.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.files import replacing
from workbench.corpus.reading import CorpusError, read_source

_STREAMED_TEXTS = 20_000
_TEXTS_TOGETHER = 64
_BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class TokenBatch:
    """Windows of texts as tokens, padded on the right. Unpacks as `tokens, mask = batch`."""

    tokens: Tensor
    """`[batch, pos]` int64; 0 in the padding."""
    mask: Tensor
    """`[batch, pos]` bool, False in the padding."""
    content: Tensor
    """`[batch, pos]` bool, False in the padding and on special tokens."""
    texts: Tensor
    """`[batch]` int64: which text of the corpus a row is from."""
    positions: Tensor
    """`[batch, pos]` int64: which token of its whole text this is; -1 on BOS and in the padding."""

    def __iter__(self) -> Iterator[Tensor]:
        yield self.tokens
        yield self.mask


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts with a name and where they come from.

    Attributes:
        texts: the texts; none is blank.
        name: what it was loaded as, with what was taken of it.
        note: what is known of it; for a bundled corpus or one with a `.json` beside it, that file.
    """

    texts: Sequence[str]
    name: str = "texts"
    note: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not all(isinstance(text, str) for text in self.texts):
            raise CorpusError("A corpus is made of a list of texts, each of them a string.")
        object.__setattr__(self, "texts", tuple(text for text in self.texts if text.strip()))
        if not self.texts:
            raise CorpusError(f"{self.name} holds no text at all.")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<Corpus {self.name}: {len(self):,} texts, {self.hash[:12]}>"

    @classmethod
    def load(cls, source: str | Path, *, column: str = "text", limit: int | None = None) -> Corpus:
        """Read a corpus.

        Args:
            source: a bundled name (`stories`); a file; a folder with such files; or a Hugging Face dataset, written
                `owner/name`, `owner/name:config` or `owner/name:config:split`, which is streamed. Files are
                `.parquet`, `.jsonl`, and `.txt`. A `.txt` file is split at lines `<|endoftext|>` if it has any, else at
                WikiText's headings of articles (` = Title = `) if it has any, else at blank lines.
            column: name of the column or field that holds the text.
            limit: the first so many texts only; of a Hugging Face dataset 20,000 are read where it is None.

        Raises:
            CorpusError: one sentence on what is missing or unreadable.
        """
        texts, path, note = read_source(source, column)
        if path is None and limit is None:
            limit = _STREAMED_TEXTS
        name = str(source) if limit is None else f"{source}[:{limit}]"
        return cls(list(itertools.islice(texts, limit)), name, note)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the texts and their order, in hex."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        return digest.hexdigest()

    @property
    def licence(self) -> str:
        """The licence of the texts, or "unknown"."""
        return str(self.note.get("licence") or self.note.get("license") or "unknown")

    @property
    def source(self) -> str:
        """Where the texts come from, in a few words."""
        return str(self.note.get("source", "unknown"))

    def take(self, n: int) -> Corpus:
        """The first `n` texts."""
        if n < 1:
            raise CorpusError(f"take() needs a number of texts from 1, not {n}.")
        return self if n >= len(self) else Corpus(self.texts[:n], f"{self.name}[:{n}]", self.note)

    def split(self, share: float, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Two corpora without a text in common: the larger part, and a held-out `share` of the texts.

        Equal texts stay together, so that nothing held out has been seen in training.
        """
        if not 0 < share < 1:
            raise CorpusError(f"share is a number between 0 and 1, not {share!r}.")
        distinct = sorted(set(self.texts), key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())
        if len(distinct) < 2:
            raise CorpusError(f"{self.name} has only one distinct text and can't be split.")
        held = set(distinct[: min(max(round(share * len(distinct)), 1), len(distinct) - 1)])
        parts = ([text for text in self.texts if text not in held], [text for text in self.texts if text in held])
        names = (f"{self.name} without {share:g} (seed {seed})", f"{share:g} of {self.name} (seed {seed})")
        return Corpus(parts[0], names[0], self.note), Corpus(parts[1], names[1], self.note)

    def passages(self, characters: int = 500) -> Corpus:
        """The same texts cut at line breaks, each piece as short as it can be with at least so many characters.

        Batches take one text after another: a few tokens of long texts are of one or two, of passages they are of many.
        A line stays whole.

        Raises:
            CorpusError: a length that is no whole number from 1.
        """
        if not _is_whole(characters, 1):
            raise CorpusError(f"characters is a whole number from 1, not {characters!r}.")
        found: list[str] = []
        for text in self.texts:
            piece = ""
            for line in text.splitlines(keepends=True):
                piece += line
                if len(piece) >= characters:
                    found.append(piece)
                    piece = ""
            if piece.strip():
                found.append(piece)
        return Corpus(found, f"{self.name} in passages of {characters}", self.note)

    def save(self, path: str | Path) -> None:
        """Write the texts to a `.parquet` or `.jsonl` file, with the note in a `.json` file beside it."""
        path = Path(path)
        if path.suffix not in (".parquet", ".jsonl"):
            raise CorpusError(f"A corpus is saved as .parquet or .jsonl, not as {path.name}.")
        with replacing(path) as temporary:
            if path.suffix == ".parquet":
                import pyarrow as pa
                import pyarrow.parquet as pq

                pq.write_table(pa.table({"text": pa.array(self.texts, pa.string())}), temporary, compression="zstd")
            else:
                lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in self.texts)
                temporary.write_text("".join(lines), encoding="utf-8")
        with replacing(path.with_suffix(".json")) as temporary:
            note = {"name": self.name, "source": self.source, "licence": self.licence, **self.note, "hash": self.hash}
            temporary.write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")

    def count_tokens(self, model: Any, at_most: int | None = None) -> int:
        """How many tokens the texts have, without special ones, for the tokenizer of `model`; or `at_most`."""
        total, specials = 0, special_ids(model)
        for start in range(0, len(self), _TEXTS_TOGETHER):
            for ids in _tokenize(model, self.texts[start : start + _TEXTS_TOGETHER]):
                total += sum(token not in specials for token in ids)
            if at_most is not None and total >= at_most:
                return at_most
        return total

    def batches(
        self,
        model: Any,
        context: int = 256,
        batch: int = 16,
        tokens: int | None = None,
        seed: int = 0,
        *,
        shuffle: bool = True,
        repeat: bool = False,
        bos: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[TokenBatch]:
        """The texts as token batches, the same for the same arguments.

        A text longer than a window is cut into windows of about equal length. Windows of similar length share a batch.

        Args:
            model: its tokenizer is used, and how many positions it sees.
            context: positions of a window, with BOS; at most as many as the model sees.
            batch: rows.
            tokens: end after exactly so many tokens, not counting special ones; None for all.
            seed: of the order of the texts.
            shuffle: whether to mix the texts; without it they come in order, up to 16 batches sorted by length.
            repeat: begin again, in another order, when all texts have been used.
            bos: put the tokenizer's BOS token, if it has one, in front of every window.
            shard: `(rank, world_size)`: this process gets every `world_size`-th batch, from `rank`.

        Raises:
            CorpusError: a setting that can't be used, or a model without a tokenizer.
        """
        rank, world = shard
        counts = {"context": (context, 2), "batch": (batch, 1), "seed": (seed, 0)}
        for name, (number, low) in (counts if tokens is None else counts | {"tokens": (tokens, 1)}).items():
            if not _is_whole(number, low):
                raise CorpusError(f"{name} is a whole number from {low}, not {number!r}.")
        if not 0 <= rank < world:
            raise CorpusError(f"shard is a rank from 0 and a world size above it, not {shard}.")
        special_ids(model)  # complain here, not at the first batch
        room = min(context, model.network.n_ctx) - (bos and _bos(model) is not None)
        windows = self._windows(model, room, tokens=tokens, seed=seed, shuffle=shuffle, repeat=repeat)
        made = _batched(windows, model, batch, np.random.default_rng([seed, 1]) if shuffle else None, bos)
        return itertools.islice(made, rank, None, world)

    def _windows(
        self, model: Any, room: int, *, tokens: int | None, seed: int, shuffle: bool, repeat: bool
    ) -> Iterator[_Window]:
        """Windows of at most `room` tokens, in the order of the texts, the last one cut so that `tokens` is exact."""
        specials = special_ids(model)
        left = tokens
        for epoch in itertools.count():
            order = np.random.default_rng([seed, 0, epoch]).permutation(len(self)) if shuffle else np.arange(len(self))
            for start in range(0, len(self), _TEXTS_TOGETHER):
                chunk: list[int] = order[start : start + _TEXTS_TOGETHER].tolist()
                for text, ids in zip(chunk, _tokenize(model, [self.texts[text] for text in chunk]), strict=True):
                    parts = -(-len(ids) // room)
                    for part in range(parts):
                        begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
                        window = _Window(epoch, text, begin, ids[begin:end])
                        if left is not None:
                            left = window.shorten(left, specials)
                        yield window
                        if left == 0:
                            return
            if not repeat:
                return


@dataclass
class _Window:
    epoch: int
    text: int
    start: int
    ids: list[int]

    def shorten(self, left: int, specials: frozenset[int]) -> int:
        """Keep at most `left` tokens that are not special; how many are left after that."""
        for place, token in enumerate(self.ids):
            left -= token not in specials
            if left == 0:
                self.ids = self.ids[: place + 1]
                break
        return left


def _batched(
    windows: Iterator[_Window], model: Any, batch: int, chance: np.random.Generator | None, bos: bool
) -> Iterator[TokenBatch]:
    specials = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    prefix = [token for token in [_bos(model)] if bos and token is not None]
    for _, of_epoch in itertools.groupby(windows, key=lambda window: window.epoch):
        while together := list(itertools.islice(of_epoch, batch * _BATCHES_SORTED_TOGETHER)):
            together.sort(key=lambda window: len(window.ids))
            starts = np.arange(0, len(together), batch)
            for start in (starts if chance is None else chance.permutation(starts)).tolist():
                yield _pad(together[start : start + batch], prefix, specials)


def _pad(windows: Sequence[_Window], prefix: list[int], specials: Tensor) -> TokenBatch:
    longest = max(len(window.ids) for window in windows) + len(prefix)
    tokens = torch.tensor([prefix + w.ids + [0] * (longest - len(prefix) - len(w.ids)) for w in windows])
    column = torch.arange(longest) - len(prefix)  # [pos]
    lengths = torch.tensor([len(window.ids) for window in windows])
    mask = column < lengths[:, None]  # [batch, pos]
    positions = torch.tensor([window.start for window in windows])[:, None] + column
    return TokenBatch(
        tokens,
        mask,
        mask & ~torch.isin(tokens, specials),
        torch.tensor([window.text for window in windows]),
        positions.masked_fill(~mask | (column < 0), -1),
    )


def as_corpus(texts: object) -> Corpus:
    """A corpus as it is.

    Raises:
        CorpusError: something else, such as the name of one.
    """
    if not isinstance(texts, Corpus):
        raise CorpusError(f'Texts are given as a Corpus, such as wb.Corpus.load("stories"), not as {texts!r:.60}.')
    return texts


def _is_whole(number: object, low: int) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool) and int(number) >= low


def special_ids(model: Any) -> frozenset[int]:
    """The ids of special tokens of a model's tokenizer: BOS, padding, the marks of turns."""
    if model.tokenizer is None:
        raise CorpusError(f"{model.name} was loaded without a tokenizer, which it takes to cut texts into tokens.")
    added = getattr(model.tokenizer, "added_tokens_decoder", {})
    return frozenset({*model.tokenizer.all_special_ids, *(token for token, what in added.items() if what.special)})


def _bos(model: Any) -> int | None:
    return model.tokenizer.bos_token_id


def _tokenize(model: Any, texts: Sequence[str]) -> list[list[int]]:
    return model.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
