"""Finding how far one can go: the setting at which perplexity rises by a given share.

Every pass of the model is a point on a curve (setting, rise in perplexity), and all points are kept, so that the next
question begins with what is known. Between a point that is below and one that is above, the next is where a power law
through both would have it; that needs fewer passes than halving.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.sparsity.masking import LEAST
from workbench.sparsity.outcome import PassSums

CREEP = 0.2
"""How far up from a setting that costs little enough a step goes at least, of the way to one that costs too much."""
FARTHEST = 100.0
"""How far down one step may go, as a factor."""


@dataclass(frozen=True)
class Point:
    """What one setting does."""

    setting: float
    """The CETT of all layers, the threshold of all layers, or the share that is left out."""
    sparsity: float
    ppl_increase: float
    sums: PassSums = field(repr=False, compare=False)
    """Over each text."""


class Search:
    """The points of one measure on one sample.

    Args:
        run: a pass over the sample with a setting; the sums of each text.
        top: the highest setting there is.
        most: passes for one question, at most.
    """

    def __init__(self, run: Callable[[float], PassSums], top: float, most: int = 7):
        self.run, self.top, self.most = run, top, most
        self.points: list[Point] = []

    def at(self, setting: float) -> Point:
        """The point of a setting, run if it is not known."""
        for one in self.points:
            if one.setting == setting:
                return one
        sums = self.run(setting)
        point = Point(setting, sums.sparsity, sums.ppl_increase, sums)
        bisect.insort(self.points, point, key=lambda one: one.setting)
        return point

    def find(self, wanted: float, tolerance: float, guess: float, least: float = 0.0) -> Point:
        """The highest setting, as far as the passes go, at which perplexity rises by at most `wanted`.

        Args:
            wanted: the rise, above 0.
            tolerance: how near to it is near enough.
            guess: where to begin.
            least: the lowest setting that may be the answer; one that is known to be low enough, or 0.
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
            made = _along(below, _power(below, beyond), wanted)
            return min(max(made, below.setting + 0.05 * width), beyond.setting - 0.05 * width)
        if beyond is not None:  # down from there, as the two lowest that are too high have it
            higher = next((one for one in self.points if one.setting > beyond.setting), None)
            low = least if below is None else below.setting
            made = max(_along(beyond, _power(beyond, higher), wanted), beyond.setting / FARTHEST)
            return max(made, low + CREEP * (beyond.setting - low)) if low > LEAST else made
        if below is not None and below.setting > 0 and below.ppl_increase > 0:
            lower = next((one for one in reversed(self.points) if one.setting < below.setting), None)
            made = _along(below, _power(lower, below), wanted)
            return min(max(made, 1.05 * below.setting), 4 * below.setting, self.top)
        known = 0.0 if below is None else below.setting
        farther = min(4 * known, (known + self.top) / 2) if known < self.top else self.top
        return min(max(guess, least, farther if known > 0 else 0.0), self.top)


def _along(point: Point, power: float, wanted: float) -> float:
    """Where a power law through a point has the rise that is wanted."""
    return point.setting * (wanted / point.ppl_increase) ** (1 / power)


def _power(low: Point | None, high: Point | None) -> float:
    """The power of the law through two points; 2, as of a small error's effect, where they don't tell."""
    if low is None or high is None or low.setting <= 0 or not 0 < low.ppl_increase < high.ppl_increase:
        return 2.0
    return math.log(high.ppl_increase / low.ppl_increase) / math.log(high.setting / low.setting)
