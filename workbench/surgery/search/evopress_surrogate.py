"""A surrogate for the KL of a model with parts left out, learned from gradients at the candidates that were run.

The KL of a candidate x, 1 where a part is left out, is modelled as quadratic. Its slope by the share of part i that is
left out is then `a_i + b_i x_i + Σ_j H_ij x_j`, a line for each part, and a forward and backward pass gives a point of
each line. Leaving part i out adds the mean of its slopes at both ends, `a_i + b_i / 2 + Σ_j H_ij x_j`. Each line is a
Bayesian regression: alone, a part has slope 0 and adds its known harm, so `b_i` is near twice that harm. A pair is in
two lines; its value is the mean of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.precision import in_float64
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.search.budgets import Candidate

OFFSET, OWN, SHIFT = 0.1, 0.2, 0.03
"""Prior standard deviations, in parts of the median KL: of a_i, of b_i around twice the harm, and of the KL of a part
around that of its slopes. These and the next were chosen where 12 of 60 sublayers are left out."""
FAR, NEAR, NEXT = 0.015, 0.045, -0.05
"""Of H_ij: the standard deviation is the first for parts far from each other, and for nearer ones the second by their
distance is added; the third is the mean for neighbours, which often cost less together than each alone."""
NOISE = 0.2
"""Standard deviation of a slope and of a KL on one window, in the same unit; the residuals of slopes correct it."""
BASE = 1.0
"""Standard deviation of the KL where nothing is left out, by the same quadratic."""
TRUST = 4
"""Number of observations that the prior of the slopes' noise counts as."""
LEAST = 0.05
"""KLs and values below it, in the same unit, count as this much where logarithms are taken."""


class Surrogate:
    """The posterior of the KL that left-out parts add.

    Args:
        harm: KL of each part left out alone.
    """

    def __init__(self, harm: Sequence[float]):
        self._harm = torch.tensor(harm, dtype=torch.float64)
        self._levels: list[Candidate] = []
        self._windows: list[int] = []
        self._kls: list[float] = []
        self._slopes: list[Tensor] = []
        self._hardness = torch.zeros(0, dtype=torch.float64)  # [windows] log of how far a window's KL is above others'

    @property
    def seen(self) -> list[Candidate]:
        """Candidates that were run, each once."""
        return list(dict.fromkeys(self._levels))

    def saw(self, levels: Candidate, window: int, kl: float, slopes: Tensor) -> None:
        """Add an observation: a candidate's mean KL on a window, and its slopes there, `[parts]` in nats.

        Raises:
            SurgeryError: one of them is not finite.
        """
        if not torch.isfinite(torch.tensor(kl)) or not bool(torch.isfinite(slopes).all()):
            raise SurgeryError(f"The KL on window {window} is no number; the model's own logits there may overflow.")
        self._levels.append(levels)
        self._windows.append(window)
        self._kls.append(kl)
        self._slopes.append(in_float64(slopes))

    def learn(self) -> None:
        """Fit to all observations."""
        x = torch.tensor(self._levels, dtype=torch.float64)  # [seen, parts]
        window, kl = torch.tensor(self._windows), torch.tensor(self._kls, dtype=torch.float64)
        self._unit = max(float(kl.median()), 1e-6)  # below it, rounding of the dense log-probabilities is left
        more = max(0, int(window.max()) + 1 - len(self._hardness))
        self._hardness = torch.cat([self._hardness, self._hardness.new_zeros(more)])
        scale = self._unit * self._hardness[window].exp()
        ones = torch.cat([x, x.new_ones(len(x), 1)], 1)  # [seen, parts + 1]
        self._fit_lines(ones, torch.stack(self._slopes) / scale[:, None])
        self._fit_shift(x, ones, kl / scale)
        off = (kl / self._unit).clamp_min(LEAST).log() - self._value(x).clamp_min(LEAST).log()
        total = torch.zeros_like(self._hardness).index_add_(0, window, off)
        self._hardness = (total / (torch.bincount(window, minlength=len(total)) + 0.5)).clamp(-1, 1)

    def _fit_lines(self, ones: Tensor, slopes: Tensor) -> None:
        """Mean and precision of all lines, from candidates with a 1 behind each and slopes `[seen, parts]`."""
        count, parts = slopes.shape
        place = torch.arange(parts, dtype=ones.dtype)
        distance = (place - place[:, None]).abs()
        sd = torch.cat([FAR + NEAR / distance.clamp_min(1), ones.new_full((parts, 1), OFFSET)], 1)
        sd.diagonal().fill_(OWN)
        mean = torch.cat([NEXT * (distance == 1), ones.new_zeros(parts, 1)], 1)
        mean.diagonal().copy_(2 * self._harm / self._unit)
        prior = sd**-2
        noise = ones.new_full((parts,), NOISE**2)
        for again in (True, False):  # once with the noise as it is believed, and once as it is seen then
            precision = torch.diag_embed(prior) + (ones.T @ ones) / noise[:, None, None]
            self._root = torch.linalg.cholesky(precision)  # [parts, parts + 1, parts + 1]
            right = prior * mean + (ones.T @ slopes).T / noise[:, None]
            self._lines = torch.cholesky_solve(right[..., None], self._root)[..., 0]  # [parts, parts + 1]
            if again:
                off = (slopes - ones @ self._lines.T).square().sum(0)
                noise = (off + TRUST * NOISE**2) / (count + TRUST)

    def _fit_shift(self, x: Tensor, ones: Tensor, kl: Tensor) -> None:
        """The KL of parts beyond that of their slopes, from the KL of candidates; each row of `ones` ends in a 1."""
        alone, pairs = _worths(self._lines)
        prior = ones.new_full((ones.shape[1],), SHIFT**-2)
        prior[-1] = BASE**-2
        right = ones.T @ (kl - _quadratic(x, alone, pairs)) / NOISE**2
        shift = torch.linalg.solve(torch.diag(prior) + ones.T @ ones / NOISE**2, right)
        self._alone, self._pairs, self._base = alone + shift[:-1], pairs, float(shift[-1])

    def _value(self, x: Tensor) -> Tensor:
        return self._base + _quadratic(x, self._alone, self._pairs)

    def values(self, candidates: Sequence[Candidate]) -> Tensor:
        """The expected KL of candidates on an average window, `[candidates]` in nats."""
        return self._value(torch.tensor(candidates, dtype=torch.float64)) * self._unit

    def expected(self) -> tuple[Tensor, Tensor]:
        """The KL that each part adds alone, `[parts]`, and that each pair adds beyond, `[parts, parts]`."""
        return self._alone * self._unit, self._pairs * self._unit

    def drawn(self, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same under a draw of all lines from their posterior (Thompson, Biometrika, 1933)."""
        normal = torch.randn(*self._lines.shape, 1, generator=chance, dtype=torch.float64)
        off = torch.linalg.solve_triangular(self._root.mT, normal, upper=True)[..., 0]
        alone, pairs = _worths(off)
        return (self._alone + alone) * self._unit, (self._pairs + pairs) * self._unit


def _worths(lines: Tensor) -> tuple[Tensor, Tensor]:
    """The KL that parts add alone and in pairs, from the lines of their slopes, `[parts, parts + 1]`."""
    slopes, offset = lines[:, :-1], lines[:, -1]
    own = slopes.diagonal()
    return offset + own / 2, (slopes + slopes.T) / 2 - torch.diag(own)


def _quadratic(x: Tensor, alone: Tensor, pairs: Tensor) -> Tensor:
    return x @ alone + ((x @ pairs) * x).sum(-1) / 2
