"""What an index says: examples, cards, hits of a search, features that fire on a prompt."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.dictionaries.features import Feature


@dataclass(frozen=True)
class Example:
    """A token on which a feature is active, in its context."""

    tokens: list[str]
    """The text of each token shown."""
    activations: list[float | None]
    """The feature's value on each of them; None where the index does not keep it."""
    peak: int
    """Which of the tokens the example is about, from 0."""
    value: float
    """The feature's value there."""
    text: int
    """Which text of the corpus."""
    position: int
    """Which token of that text the peak is."""
    row: int
    """Which token of the index the peak is."""


@dataclass(frozen=True)
class QuantileExample(Example):
    """An example from a part of a feature's values, cut into parts with equally many tokens."""

    band: tuple[float, float]
    """Quantiles of the part: (0.75, 1.0) is the highest quarter of the values."""


@dataclass(frozen=True)
class TokenScore:
    """A token that a feature promotes or suppresses."""

    id: int
    token: str
    score: float
    """What one unit of the feature adds to the token's logit, before the final norm's division."""


@dataclass(frozen=True)
class Neighbour:
    """A feature whose direction is near."""

    index: int
    label: str
    cosine: float


@dataclass(frozen=True)
class Partner:
    """A feature that is active on the same tokens."""

    index: int
    label: str
    share: float
    """Share of this feature's tokens on which the partner is active too."""
    pmi: float
    """Logarithm of how many times its usual share that is."""


@dataclass(frozen=True)
class Histogram:
    """How often a feature has which value, where it is active."""

    edges: list[float]
    """One more than counts."""
    counts: list[int]


@dataclass(frozen=True)
class FeatureCard:
    """All that an index knows of a feature."""

    feature: Feature
    index: int
    label: str
    note: str
    starred: bool
    active: int
    """Tokens on which the feature is not 0."""
    density: float
    """Their share of all tokens."""
    mean: float
    """Mean value over them."""
    highest: float
    lowest: float
    histogram: Histogram
    top_examples: list[Example]
    """Highest values, best first."""
    quantile_examples: list[QuantileExample]
    """From each quarter of the values, highest quarter first."""
    lowest_examples: list[Example]
    """Lowest values, lowest first, of features that can be negative."""
    promoted: list[TokenScore]
    """Best first; empty where the dictionary does not write into the residual stream."""
    suppressed: list[TokenScore]
    neighbours: list[Neighbour]
    """Nearest first."""
    cofiring: list[Partner]
    """By share times PMI; empty for neurons, which are active everywhere."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, the feature as its id."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "feature"}
        said = {name: _plain(value) for name, value in plain.items()}
        return {"feature": str(self.feature), **said}


@dataclass(frozen=True)
class FeatureHit:
    """A feature that a search found."""

    feature: Feature
    index: int
    label: str
    starred: bool
    density: float
    highest: float
    activating: list[str]
    """Tokens it is most active on, each once."""
    promoted: list[str]
    """Tokens it promotes most."""
    found: str = ""
    """Where the text stands: label, note, activating or promoted."""
    score: RegexScore | None = None
    """How well it tells the matches of a regular expression."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, the feature as its id."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "feature"}
        return {"feature": str(self.feature), **{name: _plain(value) for name, value in plain.items()}}


@dataclass(frozen=True)
class RegexScore:
    """How well a feature tells the tokens that a regular expression marks from all others."""

    hits: float
    """Marked tokens on which it is active; an estimate has fractions."""
    precision: float
    """Hits, divided by the tokens on which it is active."""
    recall: float
    """Hits, divided by marked tokens."""
    f1: float
    matches: int
    """Marked tokens."""
    exact: bool
    """False where the index keeps only some entries of the feature, and the hits are estimated from them."""
    threshold: float = 0.0
    """Active means a value from here on; above 0 for neurons, which are never quite inactive."""


@dataclass(frozen=True)
class TokenFeatures:
    """The features that are active on one token of a prompt."""

    id: int
    token: str
    features: list[int]
    """Highest value first."""
    values: list[float]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
