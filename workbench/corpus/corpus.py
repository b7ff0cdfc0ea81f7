"""Texts with a name, a licence and a hash, and their way into a model as batches of tokens."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt

from workbench.core.checks import Integer, Natural, Number, Positive, checked
from workbench.core.display import Tabular, columns
from workbench.core.text import counted
from workbench.core.type_words import shown
from workbench.corpus.batching import (
    Model,
    TokenBatch,
    batched,
    bos_id,
    cut,
    special_ids,
    together,
    tokenize,
    windows_of,
)
from workbench.corpus.reading import CorpusError, read_source
from workbench.corpus.saving import texts_hash, write_corpus
from workbench.corpus.tables import Wanted

STREAMED_TEXTS = 20_000
"""Texts that are read of a Hugging Face dataset without a limit."""


@checked(CorpusError)
@dataclass(frozen=True, eq=False)
class Corpus(Tabular):
    """Texts with a name and their source.

    Attributes:
        texts: the texts; none is blank.
        name: the name that it was loaded under, with the part that was taken of it.
        note: source, licence and more, as `save` wrote it or as a `.json` file of the same name beside it says.
    """

    opened_by: ClassVar[str] = "wb.Corpus.load"

    texts: Sequence[str]
    name: str = "texts"
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(text for text in self.texts if text.strip()))
        if not self.texts:
            raise CorpusError(f"{self.name} holds no text at all.")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<Corpus {self.name}: {counted(len(self), 'text')}, {self.hash[:12]}>"

    @classmethod
    @checked(CorpusError)
    def load(
        cls,
        source: str | Path,
        *,
        column: str | None = None,
        limit: Positive | None = None,
        delimiter: str | None = None,
    ) -> Corpus:
        """The corpus of a file, a folder or a dataset.

        Args:
            source: a bundled name (`stories`); a file; a folder with such files; or a Hugging Face dataset, written
                `owner/name`, `owner/name:config` or `owner/name:config:split`, which is streamed. Files are
                `.parquet`, `.jsonl`, `.csv`, `.tsv` and `.txt`, in capitals or not. A `.txt` file is split where
                `<|endoftext|>` stands alone on a line if it does anywhere, else at WikiText's headings of articles
                (` = Title = `) if it has any, else at blank lines. Of a folder, files in folders inside it are read
                too, but no hidden ones (`.git`), in the order of their paths: name by name, capitals first.
            column: name of the column or field that holds the text; None for `text`. In a `.csv` or `.tsv` file that
                has no such column, None takes the only one with fields of several words; the source then names it.
            limit: read the first so many texts only; None reads all, and 20,000 of a Hugging Face dataset.
            delimiter: of the fields of `.csv` and `.tsv` files; None finds it.

        Raises:
            CorpusError: nothing is there, it can't be read, or its note is of other texts.
        """
        texts, path, note = read_source(source, Wanted(column, delimiter))
        if path is None and limit is None:
            limit = STREAMED_TEXTS
        name = str(source) if limit is None else f"{source}[:{limit}]"
        return cls(list(itertools.islice(texts, limit)), name, note)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the texts and their order, in hex."""
        return texts_hash(self.texts)

    @property
    def licence(self) -> str:
        """The licence of the texts, or "unknown"."""
        return str(self.note.get("licence") or self.note.get("license") or "unknown")

    @property
    def source(self) -> str:
        """The source of the texts, in a few words."""
        return str(self.note.get("source", "unknown"))

    @checked(CorpusError)
    def take(self, n: Positive) -> Corpus:
        """The first `n` texts."""
        return self if n >= len(self) else Corpus(self.texts[:n], f"{self.name}[:{n}]", self.note)

    @checked(CorpusError)
    def split(self, share: Annotated[Number, Gt(0), Lt(1)], seed: Natural = 0) -> tuple[Corpus, Corpus]:
        """Two corpora without a text in common: the larger part, and a held-out `share` of the texts.

        Equal texts stay together, so that no held-out text is in the training part.

        Args:
            share: of the texts that are held out, between 0 and 1.
            seed: of the choice.

        Raises:
            CorpusError: a share out of range, or a corpus with only one distinct text.
        """
        distinct = sorted(set(self.texts), key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())
        if len(distinct) < 2:
            raise CorpusError(f"{self.name} has only one distinct text and can't be split.")
        held = set(distinct[: min(max(round(share * len(distinct)), 1), len(distinct) - 1)])
        parts = ([text for text in self.texts if text not in held], [text for text in self.texts if text in held])
        names = (f"{self.name} without {share:g} (seed {seed})", f"{share:g} of {self.name} (seed {seed})")
        return Corpus(parts[0], names[0], self.note), Corpus(parts[1], names[1], self.note)

    @checked(CorpusError)
    def passages(self, characters: Positive = 500) -> Corpus:
        """The same texts cut at line breaks into the shortest pieces of whole lines with at least so many characters.

        Batches take one text after another: a few tokens of long texts come from one or two, of passages from many.

        Raises:
            CorpusError: characters out of range.
        """
        pieces: list[str] = []
        for text in self.texts:
            piece = ""
            for line in text.splitlines(keepends=True):
                piece += line
                if len(piece) >= characters:
                    pieces.append(piece)
                    piece = ""
            if piece.strip():
                pieces.append(piece)
        return Corpus(pieces, f"{self.name} in passages of {characters}", self.note)

    @checked(CorpusError)
    def save(self, path: str | Path) -> None:
        """Write the texts and the note to a `.parquet` or `.jsonl` file; a corpus that is there is replaced.

        Parquet holds the note in its metadata; the note of `NAME.jsonl` is in `NAME.jsonl.about.json`, with the hash of
        its texts. Both are written whole or not at all.

        Raises:
            CorpusError: a file of another kind, or one that can't be written or holds something else than a corpus.
        """
        note = {"name": self.name, "source": self.source, "licence": self.licence, **self.note, "hash": self.hash}
        write_corpus(Path(path), self.texts, note)

    @checked(CorpusError)
    def count_tokens(self, model: Model, at_most: Natural | None = None, context: Positive = 256) -> int:
        """The number of tokens that count in `batches` of this context; at most `at_most`."""
        total, specials, prefixed = 0, special_ids(model), bos_id(model) is not None
        room = min(context, model.network.n_ctx) - prefixed
        for chunk in together(range(len(self)), self.texts):
            for ids in tokenize(model, [self.texts[text] for text in chunk]):
                total += sum(token not in specials for token in ids)
                if not prefixed:
                    total -= sum(window.ids[0] not in specials for window in cut(0, 0, ids, room))
            if at_most is not None and total >= at_most:
                return at_most
        return total

    def check_tokens(self, model: Any, context: int = 256) -> None:
        """Refuse texts of which nothing can be measured.

        Raises:
            CorpusError: no token counts in `batches` of this context.
        """
        if not self.count_tokens(model, 1, context):
            raise CorpusError(
                f"{self.name} holds no token to measure on, only special ones and first ones; give longer texts."
            )

    @checked(CorpusError)
    def batches(
        self,
        model: Model,
        context: Annotated[Integer, Ge(2)] = 256,
        batch: Positive = 16,
        tokens: Positive | None = None,
        seed: Natural = 0,
        *,
        shuffle: bool = True,
        repeat: bool = False,
        bos: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[TokenBatch]:
        """The texts as token batches, the same for the same arguments.

        A text longer than a window is cut into windows of about equal length. Windows of similar length share a batch;
        of a model that is not causal, windows of equal length, since its tokens would see the padding.

        Args:
            model: its tokenizer and its context length are used.
            context: positions of a window, with BOS; the context length of the model bounds it.
            batch: rows at most.
            tokens: end after exactly so many tokens that count; None for all. Special tokens and the first position of
                a window do not count.
            seed: of the order of the texts.
            shuffle: mix the texts; otherwise they come in order, up to 16 batches sorted by length.
            repeat: begin again, in another order, when all texts have been used.
            bos: put the tokenizer's BOS token, if it has one, in front of every window.
            shard: `(rank, world_size)`: this process gets every `world_size`-th batch, from `rank`.

        Raises:
            CorpusError: a setting that can't be used, or a model without a tokenizer.
        """
        rank, world = shard
        if not 0 <= rank < world:
            raise CorpusError(f"shard is a rank from 0 and a world size above it, not {shard}.")
        special_ids(model)  # raises here, not at the first batch
        prefixed = bos and bos_id(model) is not None
        room = min(context, model.network.n_ctx) - prefixed
        how: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "repeat": repeat, "prefixed": prefixed}
        windows = windows_of(self.texts, model, room, tokens=tokens, **how)
        batches = batched(windows, model, batch, np.random.default_rng([seed, 1]) if shuffle else None, bos)
        return itertools.islice(batches, rank, None, world)

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each text."""
        return columns(text=self.texts)

    def _facts(self) -> Mapping[str, object]:
        return {"name": self.name, "texts": len(self), "source": self.source, "licence": self.licence}


def as_corpus(texts: object) -> Corpus:
    """The argument, if it is a corpus.

    Raises:
        CorpusError: another object, such as the name of a corpus.
    """
    if not isinstance(texts, Corpus):
        raise CorpusError(f'Texts are given as a Corpus, such as wb.Corpus.load("stories"), not as {shown(texts)}.')
    return texts
