"""Features as others publish them: Neuronpedia's exports and circuit-tracer's feature files.

Sources: Neuronpedia's `utils/neuronpedia-utils`: a folder for each source with `features/`, `activations/` and
`explanations/`, each with files `batch-N.jsonl`, packed as `.gz` or not. circuit-tracer 0.5.0,
`frontend/feature_models.py`: a file `NUMBER.json` for each feature.

Such a folder holds examples that somebody chose and no corpus: what can't be told from it is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.core import markup
from workbench.core.checks import Natural, Positive, checked
from workbench.core.display import Shown, Tabular
from workbench.index.layout import FeatureIndexError


@dataclass(frozen=True)
class ExportedLabel(Shown):
    """What somebody says that a feature is."""

    text: str
    source: str
    """How it was made, and by which model, as far as the file says it."""


@dataclass(frozen=True)
class ExportedExample(Shown):
    """A piece of text, with the feature's value on each token."""

    tokens: list[str]
    values: list[float]

    @property
    def peak(self) -> int:
        """The place of the highest value, from 0."""
        return max(range(len(self.values)), key=self.values.__getitem__)

    def _parts(self) -> Iterator[str]:
        yield markup.tokens(self.tokens, self.values)

    def _facts(self) -> Mapping[str, object]:
        return {"context": "".join(self.tokens), "highest": max(self.values, default=0.0)}


@dataclass(frozen=True)
class ExportedFeature(Shown):
    """What a folder holds on one feature; None and empty lists where it says nothing."""

    index: int
    labels: list[ExportedLabel] = field(default_factory=list)
    examples: list[ExportedExample] = field(default_factory=list)
    """Those with the highest values first."""
    density: float | None = None
    """Share of tokens on which it was active, by the count of whoever made the export."""
    highest: float | None = None
    promoted: list[str] = field(default_factory=list)
    """Texts of the tokens that it promotes most, best first."""
    suppressed: list[str] = field(default_factory=list)
    promoted_scores: list[float] = field(default_factory=list)
    """The contribution of one unit of the feature to each promoted token's logit; empty where nothing is said."""
    suppressed_scores: list[float] = field(default_factory=list)

    def _parts(self) -> Iterator[str]:
        yield from super()._parts()
        for one in self.examples[: markup.LINES]:
            yield markup.tokens(one.tokens, one.values)


@dataclass(frozen=True)
class FeatureExport(Tabular):
    """The features of a folder, from `open_export`; no index, since it has no corpus to count in."""

    source: str
    """Whose form the folder has."""
    model: str
    """The model that the files name; empty where they name none."""
    name: str
    """The files' name of the dictionary."""
    hook_point: str
    """Where its vectors stand; empty where the files don't say it."""
    features: Mapping[int, ExportedFeature] = field(repr=False)
    """By index."""

    def __len__(self) -> int:
        return len(self.features)

    @checked(FeatureIndexError)
    def feature(self, index: Natural) -> ExportedFeature:
        """What the folder holds on a feature; raises `FeatureIndexError` if it holds nothing."""
        if index not in self.features:
            raise FeatureIndexError(f"The export of {self.name} holds no feature {index}.")
        return self.features[index]

    @checked(FeatureIndexError)
    def search(self, text: str, *, limit: Positive = 50) -> list[int]:
        """Features with a text in a label, in a token that they promote or in the token of an example's highest value.

        Case does not count. Those with the text in a label come first.
        """
        wanted = text.lower()
        labelled = [one.index for one in self.features.values() if any(wanted in it.text.lower() for it in one.labels)]
        others = [one.index for one in self.features.values() if any(wanted in it.lower() for it in _tokens(one))]
        return [*dict.fromkeys(labelled + others)][:limit]

    def absent(self) -> list[str]:
        """What an index has and this export does not hold, in words."""
        every = list(self.features.values())
        lacks: dict[str, bool] = {
            "labels": not any(one.labels for one in every),
            "examples": not any(one.examples for one in every),
            "densities": all(one.density is None for one in every),
            "promoted tokens": not any(one.promoted for one in every),
        }
        always = ["a corpus to search by regular expressions", "neighbours", "features that are active together"]
        return [what for what, is_so in lacks.items() if is_so] + always

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each feature."""
        for one in self.features.values():
            words = [label.text for label in one.labels]
            yield {
                "index": one.index,
                "labels": words,
                "density": one.density,
                "highest": one.highest,
                "promoted": one.promoted,
            }

    def to_dict(self) -> dict[str, Any]:
        """Source, model, name, hook point, size, and what is absent."""
        about = {name: getattr(self, name) for name in ("source", "model", "name", "hook_point")}
        return {**about, "features": len(self), "absent": self.absent()}


def _tokens(feature: ExportedFeature) -> list[str]:
    return [*feature.promoted, *(one.tokens[one.peak] for one in feature.examples if one.values)]
