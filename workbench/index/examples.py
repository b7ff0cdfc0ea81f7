"""Examples of a feature with the tokens around them, as far as these follow each other in the text."""

from __future__ import annotations

import numpy as np

from workbench.index.card import Example
from workbench.index.entries import Entries
from workbench.index.tokens import TokenTable


def examples(entries: Entries, tokens: TokenTable, feature: int, places: np.ndarray) -> list[Example]:
    """The examples at these places `[n]` among a feature's kept entries."""
    rows, values = entries.of(feature)
    kept = entries.kept(feature)
    # whether all values around the peak are known
    known = np.full(len(places), kept.complete) | np.isin(places, entries.shown(feature).all())
    rows, values = rows[places], values[places].astype(np.float32)
    begins, ends = tokens.windows(rows)
    lengths = ends - begins
    bounds = np.append(0, lengths.cumsum())
    near = np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], lengths)  # rows of all windows
    strings = tokens.strings_in_text(near)
    active = entries.at(feature, near)
    texts, positions = tokens.places(rows)
    numbers = (bounds[:-1], bounds[1:], known, rows - begins, values, texts, positions, rows)
    return [
        Example(
            strings[start:end],
            [value if complete or value else None for value in active[start:end].tolist()],
            *rest,
        )
        for start, end, complete, *rest in zip(*(column.tolist() for column in numbers), strict=True)
    ]
