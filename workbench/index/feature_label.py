"""Labels of features with their source, and scores of those that were tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.core.display import Shown, Tabular

PERSON, RULE = "a person", "rule"
"""Sources of labels: what somebody wrote, and what `FeatureIndex.explain` found."""
CHANCE = 0.5
"""The area under the ROC curve of a rule that knows nothing."""
GOOD = 0.8


@dataclass(frozen=True)
class FeatureLabel(Shown):
    """What a feature is said to be, by whom, and how well that tells the tokens on which it is active."""

    text: str
    source: str
    """ "a person", "rule", the source that an export states, or the model that wrote it."""
    kind: str = ""
    """Of a rule: token, word, neighbour, what comes next, ending, neighbourhood, class, promoted tokens, or combination
    of two."""
    score: float | None = None
    """Area under the ROC curve of telling the tokens on which the feature has at least half of its highest value from
    all others, on texts that the label was not made from; 0.5 is chance. None where it was not tested."""
    low: float | None = None
    """The lower end of its 95% interval."""
    high: float | None = None
    every: float | None = None
    """The same area for every token on which the feature is active, weakly too."""
    rule: str = ""
    """The rule as JSON; empty for a label in words."""

    @property
    def about(self) -> str:
        """Source and score in one line, for people."""
        if self.score is None:
            return f"by {self.source}, not tested"
        ends = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        known = f"{self.score:.2f}{ends}"
        weak = "" if self.every is None else f", and {self.every:.2f} for weak values too"
        return f"by {self.source}; area under the curve {known}{weak}; 0.5 is chance"


@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Tabular):
    """The labels by rule of an index's features; `FeatureIndex.explain` returns them."""

    labels: Mapping[int, FeatureLabel]
    """By feature."""
    states: list[str] = field(repr=False)
    """For each feature: `labelled`; `chance`: no rule is above chance on the other half; `rare`: strongly active on
    too few tokens to be tested; `dead`: on none; `absent`: not in the index."""
    densities: list[float] = field(repr=False)

    @property
    def live(self) -> int:
        """Number of features that are active somewhere."""
        return sum(state not in ("dead", "absent") for state in self.states)

    @property
    def good(self) -> float:
        """Share of the live features whose label has a score of at least 0.8."""
        return sum(one.score is not None and one.score >= GOOD for one in self.labels.values()) / max(self.live, 1)

    def __len__(self) -> int:
        return len(self.states)

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each feature."""
        for index, (state, density) in enumerate(zip(self.states, self.densities, strict=True)):
            one = self.labels.get(index)
            yield {
                "index": index,
                "state": state,
                "label": one.text if one else "",
                "kind": one.kind if one else "",
                "score": one.score if one else None,
                "low": one.low if one else None,
                "high": one.high if one else None,
                "every": one.every if one else None,
                "density": density,
            }

    def _facts(self) -> Mapping[str, object]:
        kinds = Counter(one.kind for one in self.labels.values())
        return {
            "features": len(self.states),
            "live": self.live,
            "states": dict(Counter(self.states)),
            "kinds": dict(kinds.most_common()),
            "share of the live with a score of 0.8": round(self.good, 3),
        }
