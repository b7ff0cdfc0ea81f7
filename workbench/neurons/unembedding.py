"""Reading neurons through the LM head: which tokens does each neuron's weight vector point to?

Davies, "Decoding specialised feature neurons in LLMs with the final projection layer" (2025, arXiv 2501.02688):
multiply a neuron's weight vector in the residual space with the LM head, `scores = W_U @ w`; the top tokens name it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.core.cache import cache_folder
from workbench.core.files import replacing
from workbench.core.hashing import fingerprint
from workbench.core.progress import Progress
from workbench.dictionaries.features import Feature, FeatureError
from workbench.interventions.features import dictionary_of
from workbench.model.language_model import LanguageModel

FORMAT = 1
"""Version of the table on disk."""
CHUNK = 512
"""Neurons per matrix product: 512 × 49,152 scores are 96 MiB."""
BLOCK = 64
"""Tokens per block of the top-k search."""
MANY_TOKENS = 500
"""From so many tokens on, a search reads the whole table instead of their places one by one."""
RANDOM_DIRECTIONS = 1024
TINY = 1e-12
"""Stands in for the norm of a vector of zeros, such as a pruned neuron's."""

Weights = Literal["gate", "up", "down"]
Scale = Literal["raw", "unit", "norm"]


@dataclass(frozen=True)
class Hit:
    """One neuron found by a search."""

    feature: Feature
    layer: int
    index: int
    tokens: list[str]
    """Its top tokens, best first (of the sign that was searched)."""
    scores: list[float]
    """Their scores."""
    rank: int
    """Where the searched token stands among them, from 0."""
    sign: int
    """1: the neuron's own direction; -1: the opposite one."""
    excess: float
    """How far the top score lies above that of random directions of the same norm, in their standard deviations."""


@dataclass(frozen=True)
class Agreement:
    """How far two models' neurons have the same meaning."""

    top_token: float
    """Share of neurons whose top token is the same in both."""
    overlap: float
    """Mean share of the top-k tokens that both have."""
    by_layer: list[float]
    """`top_token` within each layer."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class NeuronTable:
    """The top tokens of every neuron of one weight, for both signs; made by `decode_neurons`.

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

    def feature(self, row: int) -> Feature:
        """The neuron of a row; neurons decoded by their down weights are features of `post`."""
        site = "post" if self.weights == "down" else self.weights
        return Feature(f"neurons.{row // self.d_mlp}.{site}", row % self.d_mlp)

    def row(self, feature: Feature) -> int:
        """The row of a neuron of any site of the MLP; raises `FeatureError` if the table has none."""
        words = feature.dictionary.split(".")
        if words[0] != "neurons" or len(words) != 3 or not words[1].isdecimal():
            raise FeatureError(f"{feature} is not a neuron, such as neurons.29.gate:808.")
        layer = int(words[1])
        if layer >= self.n_layers or feature.index >= self.d_mlp:
            raise FeatureError(
                f"{feature} is not in this model, which has layers 0 to {self.n_layers - 1} "
                f"with neurons 0 to {self.d_mlp - 1}."
            )
        return layer * self.d_mlp + feature.index

    def hit(self, row: int, sign: int = 1, rank: int = 0) -> Hit:
        """A row as a search shows it."""
        side = _side(sign)
        tokens = [self.vocabulary[token] for token in self.tokens[side, row]]
        scores = self.scores[side, row].tolist()
        excess = float(self.excess[side, row])
        return Hit(self.feature(row), row // self.d_mlp, row % self.d_mlp, tokens, scores, rank, sign, excess)

    def search(
        self,
        text: str | int,
        *,
        match: Literal["any", "exact", "contains"] = "any",
        sign: int = 1,
        layers: Sequence[int] | None = None,
        max_rank: int | None = None,
        min_score: float | None = None,
        limit: int | None = 200,
    ) -> list[Hit]:
        """Neurons that have a token among their top ones, best first: by rank, then by score.

        Args:
            text: the token to look for, or its id.
            match: `any` ignores case and spaces around; `exact` wants this very token, " dog" with its space;
                `contains` finds it inside longer tokens too, ignoring case.
            sign: 1 for what the neuron's direction promotes, -1 for its opposite.
            layers: only these.
            max_rank: the token stands at this rank or better, from 0.
            min_score: the token has at least this score.
            limit: at most so many; None for all.

        Raises:
            ValueError: an empty text, an unknown match or sign, a layer that the model lacks.
        """
        ids = self.matching_tokens(text, match)
        side = _side(sign)
        flat = self._places_of(ids, side)
        rows, ranks = flat // self.top_k, flat % self.top_k
        scores = self.scores[side].reshape(-1)[flat]
        keep = np.ones(len(flat), dtype=bool)
        if layers is not None:
            for layer in layers:
                if not 0 <= layer < self.n_layers:
                    raise ValueError(f"There is no layer {layer}: this model has layers 0 to {self.n_layers - 1}.")
            keep &= np.isin(rows // self.d_mlp, list(layers))
        if max_rank is not None:
            keep &= ranks <= max_rank
        if min_score is not None:
            keep &= scores >= min_score
        rows, ranks, scores = rows[keep], ranks[keep], scores[keep]
        hits, seen = [], set()
        for rank in range(self.top_k):  # rank by rank, so that a limit spares the sorting of the rest
            here = np.flatnonzero(ranks == rank)
            for row in rows[here[np.argsort(-scores[here], kind="stable")]].tolist():
                if limit is not None and len(hits) >= limit:
                    return hits
                if row not in seen:  # a neuron can have both "dog" and " Dog"; its best one counts
                    seen.add(row)
                    hits.append(self.hit(row, sign, rank))
        return hits

    def matching_tokens(self, text: str | int, match: str = "any") -> list[int]:
        """Ids of the tokens that a search for `text` means."""
        if isinstance(text, int):
            if not 0 <= text < len(self.vocabulary):
                raise ValueError(f"Token {text} is outside the vocabulary, 0 to {len(self.vocabulary) - 1:,}.")
            return [text]
        if (not text.strip() and match != "exact") or not text:
            raise ValueError("There is nothing to search for; type a word.")
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
        if match == "contains":
            return sorted(token for word, tokens in self._folded.items() if wanted in word for token in tokens)
        raise ValueError(f"match is 'any', 'exact' or 'contains', not {match!r}.")

    def _places_of(self, ids: list[int], side: int) -> np.ndarray:
        """Where in the flat table of one side the tokens stand."""
        if len(ids) > MANY_TOKENS:
            wanted = np.zeros(len(self.vocabulary), dtype=bool)
            wanted[ids] = True
            return np.flatnonzero(wanted[self.tokens[side].reshape(-1)])
        places, starts = self._posted(side)
        found = [places[starts[token] : starts[token + 1]] for token in ids]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _posted(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the flat table sorted by token, and where each token's begin."""
        if side not in self._postings:
            flat = self.tokens[side].reshape(-1)
            places = np.argsort(flat, kind="stable")
            starts = np.searchsorted(flat[places], np.arange(len(self.vocabulary) + 1))
            self._postings[side] = (places, starts)
        return self._postings[side]


def decode_neurons(
    model: LanguageModel,
    weights: Weights = "gate",
    top_k: int = 10,
    *,
    scale: Scale = "raw",
    progress: Progress | None = None,
) -> NeuronTable:
    """Decode every MLP neuron through the LM head.

    Args:
        model: any model with MLPs.
        weights: whose vectors are read: rows of the `gate` or the `up` projection, or columns of `down`.
        top_k: tokens kept per neuron and sign.
        scale: `raw`: the weights as they are; `unit`: each divided by its norm; `norm`: sent through the final norm, as
            if the residual stream held nothing but this vector.
        progress: told how far it is.

    Returns:
        A `NeuronTable`, from the cache if the same one was made before.

    Raises:
        ModelError: the model lacks these weights.
        ValueError: top_k or scale out of range.
    """
    if scale not in ("raw", "unit", "norm"):
        raise ValueError(f"scale is 'raw', 'unit' or 'norm', not {scale!r}.")
    if weights not in ("gate", "up", "down"):
        raise ValueError(f"weights is 'gate', 'up' or 'down', not {weights!r}.")
    most = min(1000, model.network.vocab_size)
    if not isinstance(top_k, int) or not 1 <= top_k <= most:
        raise ValueError(f"top_k is a whole number from 1 to {most:,}, not {top_k!r}.")
    file = cache_folder() / "decodings" / f"{model.hash}-{weights}-{scale}-{top_k}.safetensors"
    vocabulary = model.token_texts(torch.arange(model.network.vocab_size))
    d_mlp = model.network.neuron_hook_point(0, "post").width
    about = {"format": FORMAT, "model": model.hash, "weights": weights, "scale": scale, "d_mlp": d_mlp}
    stored = _read(file, about)
    if stored is None:
        tensors = _decode_all(model, weights, top_k, scale, progress)
        about["sha256"] = fingerprint(tensors)
        with replacing(file) as temporary:
            save_file(tensors, temporary, metadata={"about": json.dumps(about)})
        stored = tensors, about
    return NeuronTable(*stored, vocabulary)


def _decode_all(
    model: LanguageModel, weights: Weights, top_k: int, scale: Scale, progress: Progress | None
) -> dict[str, Tensor]:
    head = model.network.unembedding()
    adjust = _adjustment(model, scale)
    chance = torch.Generator().manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(RANDOM_DIRECTIONS, head.shape[1], generator=chance), dim=-1)
    random_top = torch.cat([(adjust(part) @ head.T).amax(-1) for part in random.split(CHUNK)])  # [RANDOM_DIRECTIONS]

    kept: dict[str, list[Tensor]] = {"tokens": [], "scores": [], "norms": []}
    n_layers = model.network.n_layers
    room = torch.empty(CHUNK, head.shape[0])
    for layer in range(n_layers):
        if progress:
            progress(layer / n_layers, f"Decoding neurons, layer {layer} of {n_layers}")
        for part in model.network.neuron_weights(layer, weights).split(CHUNK):  # [chunk, d_model]
            scores = torch.mm(adjust(part), head.T, out=room[: len(part)])  # [chunk, vocab]
            best, tokens = top_both(scores, top_k)  # [2, chunk, top_k]
            kept["tokens"].append(tokens.int())
            kept["scores"].append(best)
            kept["norms"].append(part.norm(dim=-1))
    tokens, scores = torch.cat(kept["tokens"], 1), torch.cat(kept["scores"], 1)
    size = torch.cat(kept["norms"]) if scale == "raw" else torch.ones(scores.shape[1])
    excess = (scores[:, :, 0] / size.clamp(min=TINY) - random_top.mean()) / random_top.std()
    return {"tokens": tokens.contiguous(), "scores": scores.contiguous(), "excess": excess.contiguous()}


def top_both(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest and the lowest entries of each row.

    One pass finds each block's extremes; the top k entries can only lie in the k blocks with the highest maxima.

    Args:
        scores: `[rows, vocab]`.
        top_k: how many.

    Returns:
        Values `[2, rows, top_k]`, the second of `-scores`, and their columns of the same shape.
    """
    rows, width = scores.shape
    blocks = width // BLOCK
    if blocks <= top_k:
        found = [side.topk(top_k) for side in (scores, -scores)]
        return torch.stack([side.values for side in found]), torch.stack([side.indices for side in found])
    body = scores[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    low, high = torch.aminmax(body, dim=-1)  # [rows, blocks]
    rest = torch.arange(blocks * BLOCK, width).expand(rows, -1)
    values, columns = [], []
    for extreme, sign in ((high, 1), (-low, -1)):
        chosen = extreme.topk(top_k).indices  # [rows, top_k]
        places = (chosen[..., None] * BLOCK + torch.arange(BLOCK)).flatten(1)  # [rows, top_k * BLOCK]
        places = torch.cat([places, rest], dim=1)
        best = (scores.gather(1, places) * sign).topk(top_k)
        values.append(best.values)
        columns.append(places.gather(1, best.indices))
    return torch.stack(values), torch.stack(columns)


def token_scores(
    model: LanguageModel, feature: Feature, weights: Weights | None = None, scale: Scale = "raw"
) -> Tensor:
    """One neuron's score for every token, `[vocab]`; its softmax is the paper's "probability".

    `weights` None reads the weights of the feature's own site: gate, up, or down for post.
    """
    layer, own = _place(model, feature)
    vector = model.network.neuron_weights(layer, weights or own)[feature.index]
    return model.network.unembedding() @ _adjustment(model, scale)(vector[None])[0]


def neurons_writing(
    model: LanguageModel, text: str, weights: Weights = "down", *, scale: Scale = "raw", top: int = 20
) -> list[tuple[Feature, float]]:
    """The reverse question: which neurons' vectors point most to this token, over all neurons and at any rank.

    Args:
        text: one token, " dog" with its space, or a text whose first token is taken.
        weights: `down` asks who writes it; `gate` and `up` ask who reads it.
        top: how many, best first, with their scores.
    """
    token = int(model.to_tokens(text, start=False)[0, 0])
    adjust, row = _adjustment(model, scale), model.network.unembedding()[token]
    scores = torch.cat([adjust(model.network.neuron_weights(n, weights)) @ row for n in range(model.network.n_layers)])
    site, d_mlp = "post" if weights == "down" else weights, len(scores) // model.network.n_layers
    best = scores.topk(min(top, len(scores)))
    return [
        (Feature(f"neurons.{place // d_mlp}.{site}", place % d_mlp), value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def nearest_neurons(model: LanguageModel, feature: Feature, top: int = 10) -> list[tuple[Feature, float]]:
    """The neurons, of any layer and the same site, whose weight vectors have the highest cosine with this one's."""
    layer, weights = _place(model, feature)
    normal = torch.nn.functional.normalize
    own = normal(model.network.neuron_weights(layer, weights)[feature.index], dim=0)
    cosines = []
    for number in range(model.network.n_layers):
        vectors = model.network.neuron_weights(number, weights)
        cosines.append(vectors @ own / vectors.norm(dim=-1).clamp(min=TINY))
    every = torch.stack(cosines)  # [layers, d_mlp]
    every[layer, feature.index] = -2
    best = every.flatten().topk(min(top, every.numel() - 1))
    site = feature.dictionary.rsplit(".", 1)[1]
    return [
        (Feature(f"neurons.{place // every.shape[1]}.{site}", place % every.shape[1]), value)
        for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def compare_decodings(one: NeuronTable, other: NeuronTable) -> Agreement:
    """Do the neurons of two models mean the same? The paper finds the same top token in 75.4% of base and instruct.

    Raises:
        ValueError: the tables have different sizes or vocabularies.
    """
    if one.tokens.shape[1] != other.tokens.shape[1] or one.d_mlp != other.d_mlp:
        raise ValueError("The two models have different numbers of neurons; only models of one architecture compare.")
    if one.vocabulary != other.vocabulary:
        raise ValueError("The two models have different vocabularies, so their neurons' tokens can't be compared.")
    same = one.tokens[0, :, 0] == other.tokens[0, :, 0]
    k = min(one.top_k, other.top_k)
    both = (one.tokens[0, :, :k, None] == other.tokens[0, :, None, :k]).any(-1)
    return Agreement(float(same.mean()), float(both.mean()), same.reshape(-1, one.d_mlp).mean(1).tolist())


def _adjustment(model: LanguageModel, scale: Scale) -> Callable[[Tensor], Tensor]:
    """What a scale does to weight vectors `[..., d_model]` before they meet the LM head."""
    if scale == "raw":
        return lambda vectors: vectors
    if scale == "unit":
        return lambda vectors: torch.nn.functional.normalize(vectors, dim=-1)
    gain, centred = model.network.final_norm()

    def through_norm(vectors: Tensor) -> Tensor:
        if centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors / vectors.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=TINY) * gain

    return through_norm


def _place(model: LanguageModel, feature: Feature) -> tuple[int, Weights]:
    """Layer and weights of a neuron, checked against the model."""
    dictionary_of(model, feature)
    _, layer, site = feature.dictionary.split(".")
    weights: dict[str, Weights] = {"gate": "gate", "up": "up", "post": "down"}
    return int(layer), weights[site]


def _side(sign: int) -> int:
    if sign not in (1, -1):
        raise ValueError(f"sign is 1 or -1, not {sign!r}.")
    return 0 if sign == 1 else 1


def _read(file: Path, wanted: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A table from the cache, or None if there is none that is whole and is the one wanted."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if {**about, **wanted} == about and about["sha256"] == fingerprint(tensors):
            return tensors, about
        reason = "it is altered or of another version"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    logging.getLogger("workbench").warning("The decoded table %s is not used (%s); decoding anew.", file, reason)
    return None
