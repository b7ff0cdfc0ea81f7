"""Results of an index: examples, cards, search hits, features that are active on a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core import markup
from workbench.core.display import Shown, Tabular, columns, record_of
from workbench.dictionaries.features import Feature
from workbench.index.exported import ExportedLabel
from workbench.index.feature_label import FeatureLabel

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True)
class Example(Shown):
    """A token on which a feature is active, in its context: a piece of its text.

    Up to 20 tokens in front and 10 behind, as far as they were read one after another: windows of a text are read in
    any order, and special tokens not at all.
    """

    tokens: list[str]
    """The text of each token in the context."""
    activations: list[float | None]
    """The feature's value on each of them; None where the index does not keep it."""
    peak: int
    """The place of the example's token among them, from 0."""
    value: float
    """The feature's value at the peak."""
    text: int
    """The number of the text in the corpus."""
    position: int
    """The position of the peak in that text."""
    row: int
    """The row of the peak among the tokens of the index."""

    def _parts(self) -> Iterator[str]:
        yield markup.tokens(self.tokens, self.activations)

    def _facts(self) -> Mapping[str, object]:
        return {"value": self.value, "text": self.text, "position": self.position, "context": "".join(self.tokens)}


@dataclass(frozen=True)
class QuantileExample(Example):
    """An example from one of several bands of a feature's values, with equally many tokens in each."""

    band: tuple[float, float]
    """Quantiles of the band: (0.75, 1.0) is the highest quarter of the values."""


@dataclass(frozen=True)
class TokenScore(Shown):
    """A token that a feature promotes or suppresses."""

    id: int | None
    """None in an index from an export, which holds texts of tokens alone."""
    token: str
    score: float | None
    """The contribution of one unit of the feature to the token's logit, before the final norm divides; None where an
    export does not say it."""


@dataclass(frozen=True)
class Neighbour(Shown):
    """A feature whose direction has a high cosine with this feature's."""

    index: int
    label: str
    cosine: float


@dataclass(frozen=True)
class Partner(Shown):
    """A feature that is active on the same tokens."""

    index: int
    label: str
    share: float
    """Share of this feature's tokens on which the partner is active too."""
    pmi: float
    """Logarithm of that share divided by the partner's share of all tokens."""


@dataclass(frozen=True)
class Histogram(Tabular):
    """Numbers of tokens by the feature's value, where it is active."""

    edges: list[float]
    """Ends of the bins, one more than counts."""
    counts: list[int]

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each bin."""
        return columns(low=self.edges[:-1], high=self.edges[1:], tokens=self.counts)

    def figure(self) -> Figure:
        """The counts as bars."""
        from workbench.figures.tokens import activation_histogram

        return activation_histogram(self.edges, self.counts)


@dataclass(frozen=True)
class FeatureCard(Tabular):
    """Everything that an index holds on a feature; None for a number that an export does not say."""

    feature: Feature
    index: int
    label: str
    note: str
    starred: bool
    active: int | None
    """Number of tokens on which the feature is not 0."""
    density: float | None
    """Their share of all tokens."""
    mean: float | None
    """Mean value on them."""
    highest: float | None
    lowest: float | None
    histogram: Histogram
    """Without bins in an index from an export."""
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
    labels: list[ExportedLabel] = field(default_factory=list)
    """Every label of the export that the index was made from, with its source."""
    found: list[FeatureLabel] = field(default_factory=list)
    """Labels by rule and by models, with their scores, the best first."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each example."""
        for kind in ("top", "quantile", "lowest"):
            for one in getattr(self, f"{kind}_examples"):
                place = {"text": one.text, "position": one.position}
                yield {
                    "examples": kind,
                    "value": one.value,
                    "token": one.tokens[one.peak],
                    **place,
                    "context": "".join(one.tokens),
                }

    def figure(self) -> Figure:
        """The histogram of its values."""
        from workbench.figures.tokens import activation_histogram

        return activation_histogram(self.histogram.edges, self.histogram.counts)

    def _facts(self) -> Mapping[str, object]:
        names = ("feature", "label", "note", "starred", "active", "density", "mean", "highest", "lowest")
        tokens = {name: [one.token for one in getattr(self, name)] for name in ("promoted", "suppressed")}
        return {name: getattr(self, name) for name in names} | tokens

    def _parts(self) -> Iterator[str]:
        for one in self.top_examples[: markup.LINES]:
            yield markup.tokens(one.tokens, one.activations, full=self.highest)
        for name in ("neighbours", "cofiring"):
            yield markup.table(map(record_of, getattr(self, name)), name)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, the feature as its id."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "feature"}
        return {"feature": str(self.feature), **{name: _plain(value) for name, value in plain.items()}}


@dataclass(frozen=True)
class FeatureHit(Shown):
    """A feature that meets the conditions of a search."""

    feature: Feature
    index: int
    label: str
    starred: bool
    density: float | None
    """None where an export does not say it, as `highest`."""
    highest: float | None
    activating: list[str]
    """Tokens it is most active on, each once."""
    promoted: list[str]
    """Tokens it promotes most."""
    matched_in: str = ""
    """The field that contains the text: label, note, activating or promoted."""
    matched_token: str = ""
    """The token of that field that contains it; empty for a label or a note."""
    score: RegexScore | None = None
    """Its scores on the matches of a regular expression."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, the feature as its id."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "feature"}
        return {"feature": str(self.feature), **{name: _plain(value) for name, value in plain.items()}}


@dataclass(frozen=True)
class RegexScore(Shown):
    """A feature's scores as a classifier of the tokens that a regular expression marks."""

    hits: float
    """Number of marked tokens on which it is active; an estimate has fractions."""
    precision: float
    """Hits divided by the number of tokens on which it is active."""
    recall: float
    """Hits divided by the number of marked tokens."""
    f1: float
    matches: int
    """Number of marked tokens."""
    exact: bool
    """False where the index keeps only some entries of the feature and hits are estimated from them."""
    threshold: float = 0.0
    """The lowest value that counts as active; above 0 for neurons, which are hardly ever 0."""


@dataclass(frozen=True)
class TokenFeatures(Shown):
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
