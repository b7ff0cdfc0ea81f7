"""The tokens of an index: contexts of examples, and tokens that regular expressions match.

A token's *row* is its place in the order in which the corpus was read. Rows form *runs*: tokens of one text that follow
each other in it. The windows of a text are read in any order, and special tokens are not read, so that the next row can
be of any part of the text: a context never leaves its run. The tokenizer gives the end of each token in its text, so
that characters that span tokens, and spaces that belong to the token behind them, are placed right.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.checks import checked
from workbench.core.parquet import read_whole
from workbench.core.patterns import SafePattern
from workbench.corpus import Corpus
from workbench.corpus.batching import together
from workbench.index.layout import FeatureIndexError, mapped, write_array
from workbench.index.selection import AFTER, BEFORE
from workbench.model.language_model import LanguageModel


class TokenTable:
    """The tokens of a finished index.

    Args:
        folder: `data/` of an index.
        n_tokens: number of tokens.

    Attributes:
        ids: token ids `[n_tokens]`.
        runs: `[n_runs, 4]`: first row, text, position of that token in the text, character where it begins.
    """

    def __init__(self, folder: Path, n_tokens: int):
        wide = (folder / "tokens.bin").stat().st_size == 4 * n_tokens
        self.ids = mapped(folder / "tokens.bin", np.int32 if wide else np.uint16, n_tokens)
        self.runs = np.asarray(mapped(folder / "runs.bin", np.int32, -1, 4))
        self._widths = mapped(folder / "widths.bin", np.uint16, n_tokens)
        self._texts_file = mapped(folder / "texts.parquet", np.uint8, -1)  # later it may be another index's
        self._pieces_file = mapped(folder / "pieces.parquet", np.uint8, -1)
        self._bounds = np.append(self.runs[:, 0], n_tokens)

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def pieces(self) -> dict[int, str]:
        """The text of every token id that occurs here or is promoted by a feature."""
        table = _table(self._pieces_file)
        return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def strings(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of each token id; empty for -1."""
        return [self.pieces.get(int(token), "") for token in ids]

    def strings_in_text(self, rows: np.ndarray) -> list[str]:
        """The text of the token in each row `[n]`, without spaces that its text does not have there.

        A tokenizer of words with their spaces puts a space in front of a text's first word, others in front of every
        mark.
        """
        pieces = self.strings(self.ids[rows])
        return [_fitted(piece, width) for piece, width in zip(pieces, self._widths[rows].tolist(), strict=True)]

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row `[n]` its text in the corpus and its position in that text."""
        run = np.searchsorted(self.runs[:, 0], rows, "right") - 1
        return self.runs[run, 1], self.runs[run, 2] + rows - self.runs[run, 0]

    def windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row `[n]` the first row of its context and the row behind the last; a context lies in one run."""
        behind = np.searchsorted(self._bounds, rows, "right")
        begins = np.maximum(self._bounds[behind - 1], rows - BEFORE)
        return begins, np.minimum(self._bounds[behind], rows + AFTER + 1)

    def matches(self, pattern: SafePattern) -> np.ndarray:
        """Rows of the tokens where matches begin, `[matches]`; of the first group where there is one.

        A match that begins outside the tokens read, or whose first group takes no part, does not count.

        Raises:
            FeatureIndexError: matching takes too long.
        """
        group = 1 if pattern.groups else 0
        starts = [
            base + at
            for base, text in zip(self._bases.tolist(), self._texts["text"].to_pylist(), strict=True)
            for at in pattern.starts(text, group)
        ]
        ends, begins, rows = self._characters
        at = np.array(starts, np.int64)
        place = np.searchsorted(ends, at, "right")
        inside = place < len(ends)
        place, at = place[inside], at[inside]
        return rows[place[begins[place] <= at]]

    @functools.cached_property
    def _texts(self) -> pa.Table:
        return _table(self._texts_file)

    @functools.cached_property
    def _bases(self) -> np.ndarray:
        """The first character of each text if all are joined with a gap between them, `[texts]`."""
        lengths = [len(text) + 1 for text in self._texts["text"].to_pylist()]
        return np.cumsum([0, *lengths[:-1]], dtype=np.int64)

    @functools.cached_property
    def _characters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens in the order of the joined texts: the end and the beginning of each in characters, and its row."""
        lengths = np.diff(np.append(self.runs[:, 0], len(self)))
        behind = np.cumsum(self._widths, dtype=np.int64)  # [n_tokens]
        before = behind - self._widths
        offset = self.runs[:, 3] - before[self.runs[:, 0]]
        base = self._bases[np.searchsorted(self._texts["id"].to_numpy(), self.runs[:, 1])]
        shift = np.repeat(base + offset, lengths)
        ends, begins = behind + shift, before + shift
        order = np.lexsort((begins, ends))  # a character's first token has the width, its others have none
        return ends[order], begins[order], order.astype(np.int32)


def _table(content: np.ndarray) -> pa.Table:
    """The table in the bytes of a Parquet file `[bytes]`."""
    return read_whole(content.data, "A table of texts of this index", FeatureIndexError)


def _fitted(piece: str, width: int) -> str:
    """A token's text without the spaces in front that its width in the text leaves no place for.

    The width of a token that ends in a space may lack that space, so that it says nothing about the spaces in front.
    """
    extra = len(piece) - width
    trailing = piece.rstrip() not in (piece, "")
    return piece[extra:] if extra > 0 and not trailing and piece[:extra].isspace() else piece


def write_tokens(folder: Path, columns: dict[str, np.ndarray], model: Any, corpus: Corpus, *extra: np.ndarray) -> None:
    """Write the token files.

    Args:
        folder: the folder of the files.
        columns: `tokens`, `texts` and `positions`, `[n_tokens]` each, in the order in which they were read.
        model: its tokenizer gives the ends of tokens.
        corpus: the texts.
        extra: ids of further tokens whose texts are stored; -1 stands for none.
    """
    ids, texts, positions = columns["tokens"], columns["texts"], columns["positions"]
    write_array(folder / "tokens.bin", ids.astype(np.uint16 if model.network.vocab_size <= 1 << 16 else np.int32))
    starts = np.flatnonzero(
        np.append(True, (texts[1:] != texts[:-1]) | (positions[1:] != positions[:-1] + 1))[: len(ids)]
    )
    used = np.unique(texts)
    widths, characters = np.zeros(len(ids), np.uint16), np.zeros(len(ids), np.int32)
    by_text = np.argsort(texts, kind="stable")
    bounds = np.searchsorted(texts[by_text], np.append(used, np.iinfo(np.int32).max))
    begin = 0
    for chunk in together(used.tolist(), corpus.texts):
        ends = text_ends(model, [corpus.texts[text] for text in chunk])
        begin += len(chunk)
        for place, of_text in enumerate(ends, begin - len(chunk)):
            rows = by_text[bounds[place] : bounds[place + 1]]
            here = positions[rows]
            before = np.append(0, of_text)[here]
            widths[rows], characters[rows] = of_text[here] - before, before
    write_array(folder / "widths.bin", widths)
    runs = np.stack([starts, texts[starts], positions[starts], characters[starts]], 1)
    write_array(folder / "runs.bin", runs.astype(np.int32))
    known = pa.table({"id": pa.array(used, pa.int32()), "text": [corpus.texts[text] for text in used.tolist()]})
    pq.write_table(known, folder / "texts.parquet", compression="zstd")
    needed = np.unique(np.concatenate([ids, *(more[more >= 0] for more in extra)]))
    write_pieces(folder, needed.tolist(), model.token_texts(needed.tolist()))


def write_pieces(folder: Path, ids: Sequence[int], texts: Sequence[str]) -> None:
    """Write the text of each token id."""
    pieces = pa.table({"id": pa.array(ids, pa.int32()), "text": pa.array(texts, pa.string())})
    pq.write_table(pieces, folder / "pieces.parquet", compression="zstd")


@checked(FeatureIndexError)
def text_ends(model: LanguageModel, texts: Sequence[str]) -> list[np.ndarray]:
    """The end of each token of each text in characters, never decreasing: `[tokens]` for each text.

    A space that the tokenizer puts in front of a text, as a token of its own, ends where the text begins; by the
    tokenizer's offsets it would be the first character, which belongs to the token behind it.

    Raises:
        FeatureIndexError: the model's tokenizer is not a fast one.
    """
    if not getattr(model.tokenizer, "is_fast", False):
        raise FeatureIndexError(f"The tokenizer of {model.name} does not give offsets of tokens; load a fast one.")
    if not len(texts):
        return []
    encoded = model.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    blank = functools.cache(lambda token: model.token_texts([token])[0].isspace())
    ends = []
    for text, ids, pairs in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begin, end = np.array(pairs, np.int32).reshape(-1, 2).T
        for at in np.flatnonzero(begin[1:] == begin[:-1]).tolist():  # or the tokens of one character
            if not text[begin[at] : end[at]].isspace() and blank(ids[at]):
                end[at] = begin[at]
        ends.append(np.maximum.accumulate(end))
    return ends
