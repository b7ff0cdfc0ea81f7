"""CETT as a function of the threshold, layer by layer, learned in one pass of the plain model.

The threshold for a wanted CETT is then read from a layer's curve, so a search over CETT needs no passes for it. One
point of all curves costs a product with every down projection, a fifth of a pass of the default model. Hence there are
few points, at quantiles of the layer's own contributions, over some of the tokens.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.model.language_model import LanguageModel
from workbench.sparsity.masking import LEAST, down_weights, error_share

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
"""The quantiles of a layer's contributions above `LEAST` at which CETT is measured."""
TOKENS = 2048
"""The most tokens that the curves are measured on."""
QUANTILES = 1 << 18
"""The most contributions that a layer's quantiles are taken of."""


@dataclass(frozen=True)
class CettCurve:
    """A layer's mean CETT at some thresholds, from leaving out nothing to leaving out everything."""

    thresholds: list[float]
    """Rising thresholds."""
    cett: list[float]
    """The mean CETT at each, rising too."""

    def threshold(self, cett: float) -> float:
        """The threshold for a CETT; between two measured points the curve is a power law."""
        right = bisect.bisect_right(self.cett, cett)
        if right >= len(self.cett):
            return self.thresholds[-1]
        low, high = self.cett[right - 1], self.cett[right]
        below, beyond = self.thresholds[right - 1], self.thresholds[right]
        if low <= 0:  # the first point is at zero, which no power law reaches: a line
            return below + (beyond - below) * cett / high
        share = math.log(cett / low) / math.log(high / low)
        return math.exp(math.log(below) + share * (math.log(beyond) - math.log(below)))


class CurveMeter:
    """Measures each layer's curve while the plain model runs."""

    def __init__(self, model: LanguageModel):
        self.weights = down_weights(model)
        self.norms = [weights.norm(dim=1) for weights in self.weights]
        layers = len(self.weights)
        self.grids: list[list[float]] = [[] for _ in range(layers)]
        self.sums = torch.zeros(layers, len(SHARES)).double()
        self.counts = [0] * layers
        self.highest = [0.0] * layers

    def add(self, layer: int, values: Tensor) -> None:
        """Add a layer's neurons on some tokens, `[n, d_mlp]`; the first tokens decide the grid of thresholds."""
        norms, weights = self.norms[layer], self.weights[layer]
        sizes = values.abs() * norms  # [n, d_mlp]
        self.highest[layer] = max(self.highest[layer], float(sizes.max()) if sizes.numel() else 0.0)
        room = TOKENS - self.counts[layer]
        values, sizes = values[:room], sizes[:room]
        if not len(values):
            return
        if not self.grids[layer]:
            self.grids[layer] = _grid(sizes)
        whole = values @ weights
        for place, threshold in enumerate(self.grids[layer]):
            lost = (values * (sizes < threshold)) @ weights  # [n, d_model]
            self.sums[layer, place] += in_float64(error_share(lost, whole)).sum()
        self.counts[layer] += len(values)

    def curves(self) -> list[CettCurve]:
        """The curve of each layer, from the tokens added so far."""
        curves = []
        for layer, grid in enumerate(self.grids):
            means = (self.sums[layer] / max(self.counts[layer], 1)).cummax(0).values.tolist()
            top = max(self.highest[layer] * 1.001, 2 * LEAST)  # leaves out all that was added
            curves.append(_curve([LEAST, *grid, top], [0.0, *means[: len(grid)], 1.0]))
        return curves


def _grid(sizes: Tensor) -> list[float]:
    """Quantiles of the contributions above `LEAST`, ascending and all different."""
    some = sizes[sizes >= LEAST]
    some = some[:: -(-len(some) // QUANTILES)] if len(some) > QUANTILES else some
    if not len(some):
        return []
    ordered = some.sort().values
    return sorted({float(ordered[min(int(share * len(ordered)), len(ordered) - 1)]) for share in SHARES})


def _curve(thresholds: Sequence[float], cett: Sequence[float]) -> CettCurve:
    """A curve of strictly rising points; of several points with one CETT, that with the highest threshold is kept."""
    kept: list[tuple[float, float]] = []
    for threshold, value in zip(thresholds, cett, strict=True):
        if kept and threshold <= kept[-1][0]:
            continue
        if kept and value <= kept[-1][1]:
            kept[-1] = threshold, kept[-1][1]
        else:
            kept.append((threshold, value))
    return CettCurve([one for one, _ in kept], [value for _, value in kept])
