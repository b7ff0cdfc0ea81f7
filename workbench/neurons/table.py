"""The top tokens of every neuron as a table, and the search for neurons by a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.display import Rows, Tabular, columns, record_of
from workbench.core.errors import WorkbenchError
from workbench.core.type_words import shortened
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.neurons import layer_and_site

if TYPE_CHECKING:
    from workbench.figures.common import Figure

MANY_TOKENS = 500
"""From so many tokens on, a search reads the whole table instead of the places of each token."""

Weights = Literal["gate", "up", "down"]
Scale = Literal["raw", "unit", "norm"]
Match = Literal["any", "exact", "contains"]
Sign = Literal[1, -1]


class NeuronError(WorkbenchError):
    """A decoding or a search of neurons that can't be carried out."""


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raise `NeuronError` for a layer that a model with `n_layers` lacks."""
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise NeuronError(f"There is no layer {layer}: this model has layers 0 to {n_layers - 1}.")


@dataclass(frozen=True)
class Hit(Tabular):
    """A neuron that a search returns."""

    feature: Feature
    layer: int
    index: int
    tokens: list[str]
    """Its top tokens, best first (of the sign that was searched)."""
    scores: list[float]
    """Their scores."""
    rank: int
    """Rank of the searched token among them, from 0."""
    sign: int
    """1: the neuron's own direction; -1: the opposite one."""
    excess: float
    """How far the top score lies above that of random directions of the same norm, in their standard deviations."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each token."""
        return columns(token=self.tokens, score=self.scores)

    def figure(self) -> Figure:
        """The scores of its tokens as bars."""
        from workbench.figures.tokens import token_bars

        return token_bars(self.tokens, self.scores)


class NeuronTable(Tabular):
    """The top tokens of every neuron of one weight, for both signs; `decode_neurons` returns one.

    Rows run through the layers: row = layer * d_mlp + index.

    Attributes:
        tokens: ids `[2, rows, top_k]`, best first; [0] for the neuron's direction, [1] for the opposite.
        scores: their scores, of the same shape; [1] holds those of the opposite direction, so high is always best.
        excess: `[2, rows]`, top score above that of random directions of the same norm, in standard deviations.
        vocabulary: the text of every token.
    """

    def __init__(self, tensors: dict[str, Tensor], about: dict[str, Any], vocabulary: list[str]):
        self.tokens = tensors["tokens"].numpy()
        self.scores = tensors["scores"].numpy()
        self.excess = tensors["excess"].numpy()
        self.vocabulary = vocabulary
        self.model_hash: str = about["model"]
        self.weights: Weights = about["weights"]
        self.scale: Scale = about["scale"]
        self.d_mlp: int = about["d_mlp"]
        self.n_layers: int = self.tokens.shape[1] // self.d_mlp
        self.top_k: int = self.tokens.shape[2]
        self._postings: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._folded: dict[str, list[int]] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @checked(NeuronError)
    def feature(self, row: Natural) -> Feature:
        """The neuron of a row; neurons decoded by their down weights are features of `post`.

        Raises:
            NeuronError: the table has no such row.
        """
        if row >= self.tokens.shape[1]:
            raise NeuronError(f"This table has rows 0 to {self.tokens.shape[1] - 1:,}; there is no row {row:,}.")
        site = "post" if self.weights == "down" else self.weights
        return Feature(f"neurons.{row // self.d_mlp}.{site}", row % self.d_mlp)

    @checked(NeuronError)
    def row(self, feature: Feature) -> int:
        """The row of a neuron of any site of the MLP; raises `FeatureError` if the table has none."""
        stated = layer_and_site(feature.dictionary)
        if stated is None:
            raise FeatureError(f"{shortened(str(feature))} is not a neuron, such as neurons.29.gate:808.")
        layer, _ = stated
        if layer >= self.n_layers or feature.index >= self.d_mlp:
            raise FeatureError(
                f"{feature} is not in this model, which has layers 0 to {self.n_layers - 1} "
                f"with neurons 0 to {self.d_mlp - 1}."
            )
        return layer * self.d_mlp + feature.index

    @checked(NeuronError)
    def hit(self, row: Natural, sign: Sign = 1, rank: Natural = 0) -> Hit:
        """A row as a hit of a search; `sign` and `rank` are those of the token that was searched."""
        feature = self.feature(row)
        side = 0 if sign == 1 else 1
        tokens = [self.vocabulary[token] for token in self.tokens[side, row]]
        scores = self.scores[side, row].tolist()
        excess = float(self.excess[side, row])
        return Hit(feature, row // self.d_mlp, row % self.d_mlp, tokens, scores, rank, sign, excess)

    @checked(NeuronError)
    def search(
        self,
        text: str | int,
        *,
        match: Match = "any",
        sign: Sign = 1,
        layers: Sequence[Natural] | None = None,
        max_rank: Natural | None = None,
        min_score: Number | None = None,
        limit: Positive | None = 200,
    ) -> Rows[Hit]:
        """The neurons that have a token among their top ones, best first: by rank, then by score.

        Args:
            text: the token to look for, or its id.
            match: `any` ignores case and spaces around it; `exact` takes only the token itself, " dog" with its space;
                `contains` also takes longer tokens that contain it, ignoring case.
            sign: 1 for what the neuron's direction promotes, -1 for its opposite.
            layers: only these.
            max_rank: the token stands at this rank or better, from 0.
            min_score: the token has at least this score.
            limit: neurons at most; None for all.

        Raises:
            NeuronError: an empty text, an unknown match or sign, a layer that the model lacks.
        """
        ids = self.matching_tokens(text, match)
        side = 0 if sign == 1 else 1
        flat = self._places_of(ids, side)
        rows, ranks = flat // self.top_k, flat % self.top_k
        scores = self.scores[side].reshape(-1)[flat]
        keep = np.ones(len(flat), dtype=bool)
        if layers is not None:
            check_layers(layers, self.n_layers)
            keep &= np.isin(rows // self.d_mlp, list(layers))
        if max_rank is not None:
            keep &= ranks <= max_rank
        if min_score is not None:
            keep &= scores >= min_score
        rows, ranks, scores = rows[keep], ranks[keep], scores[keep]
        hits: Rows[Hit] = Rows()
        seen: set[int] = set()
        for rank in range(self.top_k):  # rank by rank, so that a limit spares the sorting of the rest
            here = np.flatnonzero(ranks == rank)
            for row in rows[here[np.argsort(-scores[here], kind="stable")]].tolist():
                if limit is not None and len(hits) >= limit:
                    return hits
                if row not in seen:  # a neuron can have both "dog" and " Dog"; its best one counts
                    seen.add(row)
                    hits.append(self.hit(row, sign, rank))
        return hits

    @checked(NeuronError)
    def matching_tokens(self, text: str | int, match: Match = "any") -> list[int]:
        """Ids of the tokens that a search for `text` looks for; raises `NeuronError` as `search`."""
        if isinstance(text, int):
            if not 0 <= text < len(self.vocabulary):
                raise NeuronError(f"Token {text} is outside the vocabulary, 0 to {len(self.vocabulary) - 1:,}.")
            return [text]
        if (not text.strip() and match != "exact") or not text:
            raise NeuronError("There is nothing to search for; type a word.")
        if match == "exact":
            return [token for token, word in enumerate(self.vocabulary) if word == text]
        if self._folded is None:
            folded: dict[str, list[int]] = {}
            for token, word in enumerate(self.vocabulary):
                folded.setdefault(word.strip().casefold(), []).append(token)
            self._folded = folded
        wanted = text.strip().casefold()
        if match == "any":
            return self._folded.get(wanted, [])
        return sorted(token for word, tokens in self._folded.items() if wanted in word for token in tokens)

    def _places_of(self, ids: list[int], side: int) -> np.ndarray:
        """Places of the tokens in the flat table of one side."""
        if len(ids) > MANY_TOKENS:
            wanted = np.zeros(len(self.vocabulary), dtype=bool)
            wanted[ids] = True
            return np.flatnonzero(wanted[self.tokens[side].reshape(-1)])
        places, starts = self._posted(side)
        of_each = [places[starts[token] : starts[token + 1]] for token in ids]
        return np.concatenate(of_each) if of_each else np.empty(0, dtype=np.int64)

    def _posted(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the flat table sorted by token, and the index of the first place of each token."""
        if side not in self._postings:
            flat = self.tokens[side].reshape(-1)
            places = np.argsort(flat, kind="stable")
            starts = np.searchsorted(flat[places], np.arange(len(self.vocabulary) + 1))
            self._postings[side] = (places, starts)
        return self._postings[side]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each neuron's own direction."""
        for row in range(len(self)):
            yield record_of(self.hit(row))

    def _facts(self) -> Mapping[str, object]:
        return {
            "neurons": len(self),
            "layers": self.n_layers,
            "weights": self.weights,
            "scale": self.scale,
            "top tokens": self.top_k,
        }
