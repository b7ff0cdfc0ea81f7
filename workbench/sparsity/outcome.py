"""What leaving out neurons does on some texts: sums over each text, and the measures that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from workbench.core.display import Tabular, columns
from workbench.evaluation.bootstrap import bootstrap

if TYPE_CHECKING:
    from workbench.figures.common import Figure


@dataclass(frozen=True)
class SparsityOutcome(Tabular):
    """A model with neurons left out beside the plain one, on the same texts; cross-entropies in nats per token."""

    tokens: int
    """Tokens on which neurons are counted; special ones do not count."""
    predictions: int
    """Predictions that the cross-entropies are means over."""
    texts: int
    """Texts that they are from, over which the intervals are taken."""
    sparsity: float
    """Mean share of the neurons that are left out, over tokens and layers."""
    by_layer: list[float]
    """The same for each layer."""
    ce_plain: float
    """Cross-entropy of the plain model."""
    ce: float
    """Cross-entropy with neurons left out."""
    ppl_increase: float
    """The relative rise in perplexity: 0.01 is 1%."""
    intervals: dict[str, tuple[float, float]] = field(repr=False)
    """95% confidence intervals of sparsity, ce_plain, ce and ppl_increase, by name, as (low, high)."""
    by_layer_intervals: list[tuple[float, float]] = field(repr=False)
    """The same of each layer's sparsity."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each layer."""
        low, high = zip(*self.by_layer_intervals, strict=True)
        return columns(layer=range(len(self.by_layer)), sparsity=self.by_layer, low=low, high=high)

    def figure(self) -> Figure:
        """The share left out by layer."""
        from workbench.figures.sparsity import sparsity_by_layer

        return sparsity_by_layer([""], [self])

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PassSums:
    """Sums over the tokens of each text, from one pass with neurons left out; all in float64."""

    tokens: Tensor
    """Tokens that count: `[texts]`."""
    predictions: Tensor
    """Predictions from one such token of the next: `[texts]`."""
    loss_plain: Tensor
    """Cross-entropy of the plain model, summed over predictions: `[texts]`."""
    loss: Tensor
    """Cross-entropy with neurons left out, summed over predictions: `[texts]`."""
    left_out: Tensor
    """The share of each layer's neurons that is left out, summed over tokens: `[texts, n_layers]`."""

    @property
    def ppl_increase(self) -> float:
        """The relative rise in perplexity."""
        return math.expm1(float(self.loss.sum() - self.loss_plain.sum()) / float(self.predictions.sum()))

    @property
    def sparsity(self) -> float:
        """The mean share of the neurons that are left out."""
        return float(self.left_out.sum(0).mean() / self.tokens.sum())

    def outcome(self, resamples: int, seed: int) -> SparsityOutcome:
        """The measures, with intervals by a bootstrap over texts.

        Args:
            resamples: draws of the bootstrap.
            seed: of the draws.
        """
        estimates = bootstrap(vars(self), _measures, resamples, seed)
        layers = estimates.pop("by_layer")
        return SparsityOutcome(
            tokens=int(self.tokens.sum()),
            predictions=int(self.predictions.sum()),
            texts=len(self.tokens),
            by_layer=layers.value.tolist(),
            **{name: float(one.value) for name, one in estimates.items()},
            intervals={name: one.interval for name, one in estimates.items()},
            by_layer_intervals=layers.intervals,
        )


def _measures(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The measures of several draws of texts: `[draws]` each, and `by_layer` `[draws, n_layers]`."""
    layers = sums["left_out"] / sums["tokens"][:, None]
    return {
        "by_layer": layers,
        "sparsity": layers.mean(1),
        "ce_plain": sums["loss_plain"] / sums["predictions"],
        "ce": sums["loss"] / sums["predictions"],
        "ppl_increase": ((sums["loss"] - sums["loss_plain"]) / sums["predictions"]).expm1(),
    }
