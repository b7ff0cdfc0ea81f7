"""Mutants for `evopress` where a gradient tells what parts are worth, in the place of moves by chance.

At a candidate, the gradient of the KL by the share of each part that is left out costs as much as three runs and speaks
of all parts at once. For parts that are left out it is nearly the gain of having them back; for the others it says too
little, since the KL bends, and is put together with the harm that each did alone (as pruning of heads by a gate's
gradient: Michel et al., "Are Sixteen Heads Really Better than One?", 2019, arXiv 1905.10650).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.surgery.budgets import Candidate, Judge, Sloped, raised

HEAT = 0.08
"""Size of the chance that is added to what parts are worth, in parts of the parent's KL."""
PATIENCE = 3
"""Rounds without a better candidate after which the chance has doubled."""
TRUST = 0.5
"""Weight of the slope of a part that is not left out, beside its harm alone."""
WINDOWS = 2
"""That a gradient is taken on."""


class Guide:
    """Makes mutants.

    Args:
        judge: of candidates.
        choice: tells slopes.
        harm: KL of each part raised alone.
        chance: draws.
    """

    def __init__(self, judge: Judge, choice: Sloped, harm: Sequence[float], chance: torch.Generator):
        self.judge, self.choice, self.chance = judge, choice, chance
        self.harm = torch.tensor(harm)
        self._slopes: Tensor | None = None

    def look(self, parent: Candidate, kl: float, idle: int) -> None:
        """See what parts are worth at the parent, which stood `idle` rounds; older looks fade."""
        windows = torch.randperm(len(self.judge.fitness), generator=self.chance)[:WINDOWS].tolist()
        found = self.choice.slopes(self.judge.fitness, parent, windows)
        self._slopes = found if self._slopes is None else (self._slopes + found) / 2
        self._heat = HEAT * kl * (1 + idle / PATIENCE)

    def mutated(self, parent: Candidate, moves: int) -> Candidate:
        """Some parts get a lower level, those with most to gain, and others higher ones until the budget is met."""
        assert self._slopes is not None
        gain = self._slopes + self._heat * gumbel(len(parent), self.chance)
        harm = self.harm + TRUST * self._slopes - self._heat * gumbel(len(parent), self.chance)
        levels = parent
        back = [part for part in gain.argsort(descending=True).tolist() if parent[part]][:moves]
        for part in back:
            levels = raised(levels, part, -1)
        for part in harm.argsort().tolist():
            if self.judge.fits(levels):
                break
            if not parent[part]:
                levels = raised(levels, part)
        for part in back:  # where no other is left
            if not self.judge.fits(levels):
                levels = raised(levels, part)
        return levels


def gumbel(count: int, chance: torch.Generator) -> Tensor:
    """Numbers by chance. Added to worths, each comes first as often as a softmax of the worths says."""
    uniform = torch.rand(count, generator=chance).clamp(1e-9, 1 - 1e-6)
    return -(-uniform.log()).log()
