"""The results of a measurement of sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core.display import Shown, Tabular
from workbench.sparsity.outcome import SparsityOutcome

if TYPE_CHECKING:
    from workbench.figures.common import Figure

MISSED = 0.001
"""A rise in perplexity that differs from what was asked by more than this, and more than a tenth of it, is reported."""
FEW = 8
"""Below so many texts an interval over texts is not reliable."""
NAMES = {"fixed": "one threshold", "top_k": "top-k"}


@dataclass(frozen=True)
class Baseline(Shown):
    """What another way of choosing neurons leaves out at the same rise in perplexity."""

    setting: float
    """`fixed`: the threshold of all layers; `top_k`: the share of each layer's neurons that is left out."""
    calibrated: SparsityOutcome
    """On the texts that the setting is found on."""
    reported: SparsityOutcome
    """On other texts."""

    @property
    def sparsity(self) -> float:
        """Share of the neurons left out, on the reported texts."""
        return self.reported.sparsity


@dataclass(frozen=True)
class Sparsity(Tabular):
    """PPL-p% sparsity of a model."""

    asked: float
    """The relative rise in perplexity that is allowed: 0.01 is 1%."""
    cett: float
    """The CETT that all layers share."""
    thresholds: list[float]
    """Least magnitude of a contribution that is kept, for each layer; `with_sparsity` takes them."""
    calibrated: SparsityOutcome = field(repr=False)
    """On the texts that the thresholds are found on."""
    reported: SparsityOutcome = field(repr=False)
    """On other texts."""
    cett_by_layer: list[float] = field(repr=False)
    """Each layer's CETT on the reported texts, while the plain model runs; empty in an early answer."""
    baselines: dict[str, Baseline] = field(repr=False)
    """`fixed`: one threshold for all layers; `top_k`: as many neurons for every token."""
    curves: dict[str, list[tuple[float, float, float]]] = field(repr=False)
    """Every setting that was run on the calibration texts, by measure (`cett` and the baselines): setting, sparsity and
    rise in perplexity, by rising setting."""
    passes: float
    """Passes of the model over all texts so far; a pass over a part counts as that part. All p together."""
    early: bool
    """Whether this is an early answer, from a part of the calibration texts alone."""
    provenance: dict[str, Any] = field(repr=False)
    """The model, the corpora, the settings and the versions."""

    @property
    def sparsity(self) -> float:
        """Mean share of the neurons that a token's computation can do without, on the reported texts."""
        return self.reported.sparsity

    @property
    def by_layer(self) -> list[float]:
        """The same for each layer."""
        return self.reported.by_layer

    @property
    def ppl_increase(self) -> float:
        """The relative rise in perplexity on the calibration texts; `reported.ppl_increase` is that on the others."""
        return self.calibrated.ppl_increase

    @property
    def warnings(self) -> list[str]:
        """Reasons why the result differs from what was asked, one sentence each; empty where there are none."""
        sentences = []
        rises = {"cett": self.ppl_increase}
        rises |= {name: one.calibrated.ppl_increase for name, one in self.baselines.items()}
        for name, reached in rises.items():
            if abs(reached - self.asked) > max(MISSED, self.asked / 10):
                what = "Perplexity rises" if name == "cett" else f"With {NAMES[name]} perplexity rises"
                sentences.append(
                    f"{what} by {reached:.2%} on the texts of the search, not by {self.asked:.2%}: no setting nearer "
                    "to it was found; more tokens make the curve smoother."
                )
        if self.reported.texts < FEW:
            texts = f"{self.reported.texts} text{'s' if self.reported.texts > 1 else ''}"
            sentences.append(f"Only {texts} to report on: an interval over so few says little; take more tokens.")
        return sentences

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer, on the reported texts."""
        for row, threshold in zip(self.reported.records(), self.thresholds, strict=True):
            yield row | {"threshold": threshold}

    def figure(self) -> Figure:
        """The rise in perplexity against the share of neurons left out; `reported.figure()` is that by layer."""
        from workbench.figures.sparsity import sparsity_price

        return sparsity_price([""], [self])

    def _facts(self) -> Mapping[str, object]:
        return {
            "asked rise in perplexity": self.asked,
            "sparsity": self.sparsity,
            "interval": self.reported.intervals["sparsity"],
            "rise on the reported texts": self.reported.ppl_increase,
            "cett": self.cett,
            "warnings": self.warnings,
        }

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        short = {"sparsity": self.sparsity, "by_layer": self.by_layer, "ppl_increase": self.ppl_increase}
        short |= {"warnings": self.warnings}
        return short | asdict(self)
