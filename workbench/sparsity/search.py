"""A search for the setting at which perplexity rises by a wanted share.

Every pass of the model is a point on a curve (setting, rise in perplexity). All points are kept, so that the next
search begins with them. Between a point below the wanted rise and one above it, the next setting is that of a power law
through both; this takes fewer passes than halving.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.sparsity.masking import LEAST
from workbench.sparsity.outcome import PassSums

CREEP = 0.2
"""The least step up from a setting below the wanted rise, as a share of the way to one above it."""
FARTHEST = 100.0
"""The largest step down, as a factor."""


@dataclass(frozen=True)
class Point:
    """The outcome of one setting."""

    setting: float
    """The CETT of all layers, the threshold of all layers, or the share that is left out."""
    sparsity: float
    """Mean share of the neurons that are left out."""
    ppl_increase: float
    """The relative rise in perplexity."""
    sums: PassSums = field(repr=False, compare=False)
    """Sums over each text."""


class Search:
    """The points of one measure on one sample.

    Args:
        run: runs a pass over the sample with a setting and returns the sums over each text.
        top: the highest setting.
        most: passes of one search, at most.

    Attributes:
        points: all points so far, by rising setting.
    """

    def __init__(self, run: Callable[[float], PassSums], top: float, most: int = 7):
        self.run, self.top, self.most = run, top, most
        self.points: list[Point] = []

    def at(self, setting: float) -> Point:
        """The point of a setting, which runs unless it is known."""
        for one in self.points:
            if one.setting == setting:
                return one
        sums = self.run(setting)
        point = Point(setting, sums.sparsity, sums.ppl_increase, sums)
        bisect.insort(self.points, point, key=lambda one: one.setting)
        return point

    def find(self, wanted: float, tolerance: float, guess: float, least: float = 0.0) -> Point:
        """The point of the highest setting tried at which perplexity rises by at most `wanted`.

        Args:
            wanted: the rise, above 0.
            tolerance: a difference from it that ends the search.
            guess: the first setting.
            least: the lowest setting that may be returned; one that is known to be low enough, or 0.
        """
        for _ in range(self.most):
            below, beyond = self._bracket(wanted, least)
            for one in (below, beyond):
                if one is not None and one.setting >= least and abs(one.ppl_increase - wanted) <= tolerance:
                    return one
            if below is not None and below.setting >= self.top:
                return below
            following = self._next(below, beyond, wanted, guess, least)
            if any(one is not None and one.setting == following for one in (below, beyond)):
                break
            self.at(following)
        below, _ = self._bracket(wanted, least)
        return below if below is not None else self.at(least)

    def _bracket(self, wanted: float, least: float) -> tuple[Point | None, Point | None]:
        """The highest known setting below the lowest one that is too high, and that one."""
        known = [one for one in self.points if one.setting >= least]
        above = next((place for place, one in enumerate(known) if one.ppl_increase > wanted), len(known))
        return known[above - 1] if above else None, known[above] if above < len(known) else None

    def _next(self, below: Point | None, beyond: Point | None, wanted: float, guess: float, least: float) -> float:
        """The setting to try."""
        if below is not None and beyond is not None and below.setting > 0 and below.ppl_increase > 0:
            width = beyond.setting - below.setting
            aimed = _along(below, _power(below, beyond), wanted)
            return min(max(aimed, below.setting + 0.05 * width), beyond.setting - 0.05 * width)
        if beyond is not None:  # down, by the power law of the two lowest settings that are too high
            higher = next((one for one in self.points if one.setting > beyond.setting), None)
            low = least if below is None else below.setting
            aimed = max(_along(beyond, _power(beyond, higher), wanted), beyond.setting / FARTHEST)
            return max(aimed, low + CREEP * (beyond.setting - low)) if low > LEAST else aimed
        if below is not None and below.setting > 0 and below.ppl_increase > 0:
            lower = next((one for one in reversed(self.points) if one.setting < below.setting), None)
            aimed = _along(below, _power(lower, below), wanted)
            return min(max(aimed, 1.05 * below.setting), 4 * below.setting, self.top)
        known = 0.0 if below is None else below.setting
        farther = min(4 * known, (known + self.top) / 2) if known < self.top else self.top
        return min(max(guess, least, farther if known > 0 else 0.0), self.top)


def _along(point: Point, power: float, wanted: float) -> float:
    """The setting at which a power law through a point has the wanted rise."""
    return point.setting * (wanted / point.ppl_increase) ** (1 / power)


def _power(low: Point | None, high: Point | None) -> float:
    """The power of the law through two points; 2, that of a small error's effect, where they determine none."""
    if low is None or high is None or low.setting <= 0 or not 0 < low.ppl_increase < high.ppl_increase:
        return 2.0
    return math.log(high.ppl_increase / low.ppl_increase) / math.log(high.setting / low.setting)
