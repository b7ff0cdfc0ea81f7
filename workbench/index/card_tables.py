"""Cards and search hits of features, read from the tables of an index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from workbench.dictionaries.features import Feature
from workbench.dictionaries.protocol import Dictionary
from workbench.index.card import (
    FeatureCard,
    FeatureHit,
    Histogram,
    Neighbour,
    Partner,
    QuantileExample,
    RegexScore,
    TokenScore,
)
from workbench.index.entries import Entries
from workbench.index.examples import examples
from workbench.index.label_files import Remark
from workbench.index.published import Published
from workbench.index.searching import Match
from workbench.index.selection import BANDS
from workbench.index.statistics import histogram_edges
from workbench.index.tokens import TokenTable

NO_REMARK = Remark()
T = TypeVar("T", int, float)


class CardTables:
    """The tables that cards and hits are read from.

    Args:
        name: the dictionary's name.
        dictionary: the dictionary itself, for features that can be used in interventions; None without it.
        statistics: columns by name, see `FeatureIndex.statistics`.
        entries: positions and values, sorted by feature.
        tokens: the token table.
        published: labels of an export.
    """

    def __init__(
        self,
        name: str,
        dictionary: Dictionary | None,
        statistics: dict[str, np.ndarray],
        entries: Entries,
        tokens: TokenTable,
        *,
        published: Published,
    ):
        self.name, self.dictionary = name, dictionary
        self.statistics, self.entries, self.tokens, self.published = statistics, entries, tokens, published

    def card(self, index: int, remarks: Mapping[int, Remark]) -> FeatureCard:
        """The card of a feature; `remarks` hold its own label and those of other features."""
        row = {name: column[index].tolist() for name, column in self.statistics.items()}
        places = self.entries.shown(index)
        groups = [places.top, *places.bands, places.lowest]
        ends = np.cumsum([len(group) for group in groups])
        every = examples(self.entries, self.tokens, index, places.all())
        parts = [every[end - len(group) : end] for group, end in zip(groups, ends.tolist(), strict=True)]
        own = remarks.get(index, NO_REMARK)
        return FeatureCard(
            feature=Feature(self.name, index, source=self.dictionary),
            index=index,
            label=own.label,
            note=own.note,
            starred=own.starred,
            active=known(row["active"]),
            density=known(row["density"]),
            mean=known(row["mean"]),
            highest=known(row["highest"]),
            lowest=known(row["lowest"]),
            histogram=_histogram(row),
            top_examples=parts[0],
            quantile_examples=[
                QuantileExample(**vars(example), band=(1 - (number + 1) / BANDS, 1 - number / BANDS))
                for number, band in enumerate(parts[1 : 1 + BANDS])
                for example in band
            ],
            lowest_examples=parts[-1],
            promoted=self._token_scores(row["promoted"], row["promoted_scores"]),
            suppressed=self._token_scores(row["suppressed"], row["suppressed_scores"]),
            neighbours=_neighbours(row, remarks),
            cofiring=_partners(row, remarks),
            labels=list(self.published.get(index, [])),
        )

    def hit(self, index: int, remark: Remark, match: Match, score: RegexScore | None) -> FeatureHit:
        """A search hit; `match` is where the text stands."""
        peaks = dict.fromkeys(self.statistics["peaks"][index].tolist())
        return FeatureHit(
            feature=Feature(self.name, index, source=self.dictionary),
            index=index,
            label=remark.label,
            starred=remark.starred,
            density=known(float(self.statistics["density"][index])),
            highest=known(float(self.statistics["highest"][index])),
            activating=[text for text in self.tokens.strings(np.array(list(peaks))) if text],
            promoted=[text for text in self.tokens.strings(self.statistics["promoted"][index]) if text],
            matched_in=match.field,
            matched_token="" if match.token is None else self.tokens.strings([match.token])[0],
            score=score,
        )

    def _token_scores(self, ids: list[int], scores: list[float]) -> list[TokenScore]:
        texts = self.tokens.strings(ids)
        return [
            TokenScore(None if self.entries.chosen else id, text, known(score))
            for id, text, score in zip(ids, texts, scores, strict=True)
            if id >= 0
        ]


def known(number: T) -> T | None:
    """A number of a table; None for NaN, which stands for one that an export does not say."""
    return None if math.isnan(number) else number


def _histogram(row: Mapping[str, Any]) -> Histogram:
    if "histogram" not in row:
        return Histogram([], [])
    return Histogram(histogram_edges(row["lowest"], row["highest"]).tolist(), row["histogram"])


def _neighbours(row: Mapping[str, Any], remarks: Mapping[int, Remark]) -> list[Neighbour]:
    return [
        Neighbour(index=other, label=remarks.get(other, NO_REMARK).label, cosine=cosine)
        for other, cosine in zip(row.get("neighbours", []), row.get("neighbour_cosines", []), strict=True)
    ]


def _partners(row: Mapping[str, Any], remarks: Mapping[int, Remark]) -> list[Partner]:
    columns = (row.get(name, []) for name in ("partners", "partner_shares", "partner_pmi"))
    return [
        Partner(index=other, label=remarks.get(other, NO_REMARK).label, share=share, pmi=pmi)
        for other, share, pmi in zip(*columns, strict=True)
        if other >= 0
    ]
