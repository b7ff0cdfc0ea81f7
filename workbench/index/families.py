"""Families of features, by where they are active, what they point at and what they promote; and a map of them.

How alike two features are is the mean of three numbers: the cosine of their activations over the tokens of the index,
the cosine of their directions, and the share of promoted tokens that they have in common. Each feature is joined to
its nearest ones, and families are the communities that spread labels along these ties (Raghavan, Albert and Kumara
2007). The map is the plane of the two largest components of the ties' normalised Laplacian, as in spectral embedding
(Belkin and Niyogi 2003).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.core.checks import Natural, Positive, Share, checked
from workbench.core.display import Tabular
from workbench.dictionaries.protocol import Dictionary
from workbench.index.feature_index import FeatureIndex
from workbench.index.layout import FeatureIndexError
from workbench.index.lists import Lists
from workbench.index.promoted_tokens import directions

NEAREST = 8
ROUNDS = 30
CHUNK = 256
STEPS = 60
"""Of the power iteration of the map."""


@dataclass(frozen=True, eq=False, repr=False)
class Families(Tabular):
    """Groups of the features of one dictionary, and a place in the plane for each."""

    family: np.ndarray = field(repr=False)
    """The family of each feature, `[n_features]`: 0 for the largest; -1 for features alone or dead."""
    places: np.ndarray = field(repr=False)
    """`[n_features, 2]`; NaN for dead ones."""
    names: list[str] = field(repr=False)
    """By family, the label of its densest feature that has one; empty where none has."""

    def __len__(self) -> int:
        return len(self.names)

    def members(self, family: int) -> list[int]:
        """The features of a family."""
        return np.flatnonzero(self.family == family).tolist()

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each feature."""
        for index, (family, (x, y)) in enumerate(zip(self.family.tolist(), self.places.tolist(), strict=True)):
            yield {"index": index, "family": family, "x": x, "y": y}

    def _facts(self) -> Mapping[str, object]:
        sizes = np.bincount(self.family[self.family >= 0], minlength=len(self.names))
        return {"features": len(self.family), "families": len(self.names), "largest": sizes[:5].tolist()}


@checked(FeatureIndexError)
def group_features(
    index: FeatureIndex, dictionary: Dictionary, *, least: Share = 0.25, nearest: Positive = NEAREST, seed: Natural = 0
) -> Families:
    """The families of an index's features.

    Args:
        index: of a corpus.
        dictionary: the index's dictionary.
        least: the least likeness of two features that are tied.
        nearest: ties of each feature at most.
        seed: of the order in which labels spread.

    Raises:
        FeatureIndexError: an index from an export, or another dictionary than the index's.
    """
    if index.exported:
        raise FeatureIndexError("An index from an export holds no corpus on which features could be active together.")
    about = index.about["dictionary"]
    named = dictionary.of_model or dictionary.is_named(about["hash"])
    if not named or dictionary.n_features != index.n_features or dictionary.reads != about["reads"]:
        raise FeatureIndexError(f"The index is of {about['name']}, not of {dictionary.name}; give that dictionary.")
    others, weights = _ties(index, dictionary, least, min(nearest, index.n_features - 1))
    family = _communities(others, weights, seed)
    family[np.diff(index.entries.offsets) == 0] = -1
    sizes = np.bincount(family[family >= 0], minlength=index.n_features)
    order = [one for one in np.argsort(-sizes, kind="stable").tolist() if sizes[one] > 1]
    number = np.full(index.n_features + 1, -1)
    number[order] = np.arange(len(order))
    renumbered = number[family]
    labels, density = index.names(), index.statistics["density"]
    names = []
    for one in range(len(order)):
        members = [feature for feature in np.flatnonzero(renumbered == one).tolist() if feature in labels]
        names.append(labels[max(members, key=lambda feature: density[feature])].text if members else "")
    return Families(renumbered, _map(others, weights, np.diff(index.entries.offsets) > 0), names)


def _ties(index: FeatureIndex, dictionary: Dictionary, least: float, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest features of each, `[n_features, nearest]`, and how alike they are; 0 for no tie."""
    rows = directions(dictionary).cpu().numpy()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    promoted, n = index.statistics["promoted"], index.n_features
    features = np.repeat(np.arange(n), np.diff(index.entries.offsets))
    active = Lists(features, index.entries.rows, index.entries.values, n)
    known = promoted >= 0
    promotes = Lists(np.nonzero(known)[0], promoted[known], np.ones(known.sum()), n)
    others, weights = np.zeros((n, nearest), np.int64), np.zeros((n, nearest))
    for start in range(0, n, CHUNK):
        here = slice(start, min(start + CHUNK, n))
        parts = [np.maximum(unit[here] @ unit.T, 0), active.cosines(active, here)]
        if known.any():
            parts.append(promotes.cosines(promotes, here))
        alike = np.mean(parts, axis=0)
        alike[np.arange(len(alike)), np.arange(here.start, here.stop)] = -1
        best = np.argpartition(-alike, nearest - 1, axis=1)[:, :nearest]
        others[here], weights[here] = best, np.take_along_axis(alike, best, 1)
    return others, np.where(weights >= least, weights, 0.0)


def _communities(others: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """The community of each feature: each takes, again and again, the one that most of its ties lead to."""
    n = len(others)
    source = np.repeat(np.arange(n), others.shape[1])
    kept = weights.ravel() > 0
    one, two, w = source[kept], others.ravel()[kept], weights.ravel()[kept]
    ends, there, w = np.concatenate([one, two]), np.concatenate([two, one]), np.concatenate([w, w])
    order = np.argsort(ends, kind="stable")
    there, w, starts = there[order], w[order], np.searchsorted(ends[order], np.arange(n + 1))
    family, chance = np.arange(n), np.random.default_rng(seed)
    for _ in range(ROUNDS):
        before = family.copy()
        for feature in chance.permutation(n).tolist():
            near = slice(starts[feature], starts[feature + 1])
            if near.start < near.stop:
                kinds, place = np.unique(family[there[near]], return_inverse=True)
                family[feature] = kinds[np.bincount(place, w[near]).argmax()]
        if (family == before).all():
            break
    return family


def _map(others: np.ndarray, weights: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The two slowest components of a walk along the ties, by power iteration, `[n_features, 2]`."""
    n, count = others.shape
    source, target, w = np.repeat(np.arange(n), count), others.ravel(), weights.ravel()
    degree = np.bincount(source, w, minlength=n) + np.bincount(target, w, minlength=n) + 1.0
    scale = 1 / np.sqrt(degree)
    first = np.sqrt(degree) / np.linalg.norm(np.sqrt(degree))
    plane = np.random.default_rng(0).standard_normal((n, 2))
    for _ in range(STEPS):
        moved = scale[:, None] * plane
        spread = plane * (scale**2)[:, None]
        for axis in range(2):
            spread[:, axis] += scale * (
                np.bincount(source, w * moved[target, axis], minlength=n)
                + np.bincount(target, w * moved[source, axis], minlength=n)
            )
        plane = spread + plane  # the spectrum above 0
        plane -= first[:, None] * (first @ plane)
        plane, _ = np.linalg.qr(plane)
    places = plane * scale[:, None] * np.sqrt(n)
    return np.where(live[:, None], places, np.nan)
