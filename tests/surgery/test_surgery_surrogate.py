"""The surrogate of EvoPress against a KL that is quadratic and known, and exchanges against trying all of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny
import torch
from test_surgery_search import CORPUS, Steep, Table, TableFitness, best, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import workbench as wb
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.sublayers import SublayerDropping
from workbench.surgery.search import evopress_surrogate as module
from workbench.surgery.search.budgets import Candidate, CandidateEvaluator
from workbench.surgery.search.evopress import evopress
from workbench.surgery.search.evopress_guide import exchanged
from workbench.surgery.search.evopress_surrogate import Surrogate
from workbench.surgery.search.fitness import DenseKL

pytestmark = pytest.mark.usefixtures("tiny_cache")

PARTS, HARDNESS = 12, (1.0, 1.3, 0.7, 1.0)
"""HARDNESS: by how much the KL of each window is above others'."""


class Known:
    """A quadratic KL whose slopes are known; windows differ by a factor."""

    def __init__(self, seed: int):
        chance = torch.Generator().manual_seed(seed)
        self.harm = 0.05 + 0.1 * torch.rand(PARTS, generator=chance, dtype=torch.float64)
        pairs = 0.03 * torch.randn(PARTS, PARTS, generator=chance, dtype=torch.float64)
        self.pairs = (pairs + pairs.T).fill_diagonal_(0.0) / 2
        self.chance = chance

    def value(self, levels: Candidate) -> float:
        total = sum(float(self.harm[part]) for part, level in enumerate(levels) if level)
        for one, other in itertools.combinations([part for part, level in enumerate(levels) if level], 2):
            total += float(self.pairs[one, other])
        return total

    def slopes(self, levels: Candidate) -> Tensor:
        """Of harm_i x_i² + half of the pairs, by x."""
        x = torch.tensor(levels, dtype=torch.float64)
        return 2 * self.harm * x + self.pairs @ x

    def some(self, out: int) -> Candidate:
        order = torch.randperm(PARTS, generator=self.chance).tolist()
        return tuple(int(part in order[:out]) for part in range(PARTS))

    def show(self, surrogate: Surrogate, count: int, hardness: tuple[float, ...] = HARDNESS) -> None:
        for number in range(count):
            levels, window = self.some(4 + number % 3), number % len(hardness)
            kl, slopes = self.value(levels) * hardness[window], self.slopes(levels) * hardness[window]
            surrogate.saw(levels, window, kl, slopes.float())


def test_a_quadratic_kl_is_learned_from_its_slopes() -> None:
    known = Known(0)
    # harms that are 30% off
    surrogate = Surrogate((known.harm * torch.tensor([0.7, 1.3] * (PARTS // 2))).tolist())
    known.show(surrogate, 160)
    for _ in range(4):
        surrogate.learn()
    fresh = [known.some(5) for _ in range(40)]
    truth = torch.tensor([known.value(one) for one in fresh])
    found = surrogate.values(fresh)
    assert float((found / truth).std() / (found / truth).mean()) < 0.03
    assert float((found / truth).mean()) == pytest.approx(
        1.0, abs=0.06
    )  # windows' hardness is known but for their mean
    _, pairs = surrogate.expected()
    assert torch.allclose(pairs, pairs.T)
    assert float(torch.corrcoef(torch.stack([pairs.flatten(), known.pairs.flatten()]))[0, 1]) > 0.97
    assert len(surrogate.seen) == len(set(surrogate.seen)) <= 160


def test_draws_lie_around_what_is_expected_and_come_closer() -> None:
    known, spreads = Known(1), []
    surrogate, chance = Surrogate(known.harm.tolist()), torch.Generator().manual_seed(0)
    for more in (10, 150):
        known.show(surrogate, more)
        surrogate.learn()
        alone, _ = surrogate.expected()
        draws = [surrogate.drawn(chance) for _ in range(400)]
        drawn = torch.stack([one for one, _ in draws])
        assert float(((drawn.mean(0) - alone) / (drawn.std(0) / 20)).abs().max()) < 4.5
        assert all(torch.allclose(one, one.T) for _, one in draws[:5])
        spreads.append((float(drawn.std(0).mean()), float(torch.stack([one for _, one in draws]).std(0).mean())))
    assert spreads[1][0] < 0.6 * spreads[0][0]
    assert spreads[1][1] < 0.6 * spreads[0][1]


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_stop_where_none_helps(seed: int) -> None:
    known, chance = Known(seed), torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 4, (PARTS,), generator=chance).tolist() if seed % 2 else [1] * PARTS
    space = Table(known.harm, known.pairs, [[float(size), 0.0] for size in sizes])
    evaluator = CandidateEvaluator(space, TableFitness(), 0.6 * sum(sizes), passes=1)  # type: ignore[arg-type]
    start: Candidate = (1,) * PARTS
    found = exchanged(evaluator, start, known.harm, known.pairs)
    assert evaluator.fits(found)
    assert known.value(found) <= known.value(start)
    out = [part for part, level in enumerate(found) if level]
    for back, gone in itertools.product(out, [*(part for part in range(PARTS) if part not in out), None]):
        other = tuple(int(part == gone or (part in out and part != back)) for part in range(PARTS))
        if evaluator.fits(other):
            assert known.value(other) >= known.value(found) - 1e-9


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_way_back_costs_one_run(name: str, zoo: Any) -> None:
    """Counted by torch's own counter, which leaves out the products within attention."""
    model: wb.model.LanguageModel = zoo[name]
    space, fitness = SublayerDropping(model), DenseKL(model, CORPUS, 40, context=20)
    dense = (0,) * len(space.parts)
    space.set(dense)
    with FlopCounterMode(display=False) as run:
        fitness.on(space.module, 0)
    with FlopCounterMode(display=False) as both:
        space.slopes(fitness, dense, [0])
    assert run.get_total_flops() > 0
    assert 1.5 < both.get_total_flops() / run.get_total_flops() < 2.1


def test_draws_are_of_the_posterior_that_looks_leave() -> None:
    """Three parts and few looks: the covariance by plain loops and an inverse, against that of many draws."""
    harm, chance = [0.2, 0.3, 0.1], torch.Generator().manual_seed(0)
    looks = [(1, 1, 0), (0, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1)]
    slopes = torch.randn(len(looks), 3, generator=chance) / 4
    surrogate = Surrogate(harm)
    for levels, slope in zip(looks, slopes, strict=True):
        surrogate.saw(levels, 0, 1.0, slope)
    surrogate.learn()  # all KLs are 1, and so are the unit and the window
    covariances = []
    for part in range(3):
        noise = module.NOISE**2
        for _ in range(2):
            precision, right = torch.zeros(4, 4).double(), torch.zeros(4).double()
            for place in range(4):
                mean, sd = 0.0, module.OFFSET
                if place == part:
                    mean, sd = 2 * harm[part], module.OWN
                elif place < 3:
                    mean = module.NEXT if abs(place - part) == 1 else 0.0
                    sd = module.FAR + module.NEAR / abs(place - part)
                precision[place, place] += sd**-2
                right[place] += mean * sd**-2
            for levels, slope in zip(looks, slopes[:, part].tolist(), strict=True):
                row = torch.tensor([*levels, 1]).double()
                precision += torch.outer(row, row) / noise
                right += row * slope / noise
            found = torch.linalg.solve(precision, right)
            off = [
                s - float(torch.tensor([*x, 1]).double() @ found) for x, s in zip(looks, slopes[:, part], strict=True)
            ]
            covariances.append(precision.inverse())
            noise = (sum(one * one for one in off) + 4 * module.NOISE**2) / (len(looks) + 4)
    covariance = torch.block_diag(*covariances[1::2])  # of all lines, those of the second turn
    to = torch.zeros(4, 12).double()  # alone 0, alone 1, pair 0 1, pair 0 2, of the lines
    to[0, 0], to[0, 3], to[1, 4 + 1], to[1, 4 + 3] = 0.5, 1.0, 0.5, 1.0
    to[2, 1], to[2, 4], to[3, 2], to[3, 8] = 0.5, 0.5, 0.5, 0.5
    draws = [surrogate.drawn(chance) for _ in range(20_000)]
    seen = torch.stack([torch.stack([alone[0], alone[1], pairs[0, 1], pairs[0, 2]]) for alone, pairs in draws])
    expected = to @ covariance @ to.T
    scale = expected.diagonal().sqrt()
    assert float(((torch.cov(seen.T) - expected) / torch.outer(scale, scale)).abs().max()) < 0.04


def test_harms_are_what_is_known_before_there_are_looks() -> None:
    known = Known(2)
    known.harm[::3] *= 5
    surrogate = Surrogate(known.harm.tolist())
    known.show(surrogate, 3)
    surrogate.learn()
    fresh = [known.some(5) for _ in range(40)]
    both = torch.stack([surrogate.values(fresh), torch.tensor([known.value(one) for one in fresh]).double()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9


def test_what_slopes_do_not_say_is_learned_from_the_kl() -> None:
    known = Known(3)
    hidden = torch.tensor([0.06, -0.06] * (PARTS // 2)).double()
    value, known.value = known.value, lambda x: value(x) + float(hidden @ torch.tensor(x).double())  # type: ignore
    surrogate = Surrogate(known.harm.tolist())
    known.show(surrogate, 200, (1.0,))
    surrogate.learn()
    alone, _ = surrogate.expected()
    assert float(torch.corrcoef(torch.stack([alone - known.harm, hidden]))[0, 1]) > 0.9


@pytest.mark.parametrize("odd", [0.0, 1e-9])
def test_a_window_without_kl_spoils_nothing(odd: float) -> None:
    known = Known(4)
    surrogate = Surrogate(known.harm.tolist())
    known.show(surrogate, 120, (1.0, 1.2, odd, 0.9))
    for _ in range(3):
        surrogate.learn()
    fresh = [known.some(5) for _ in range(40)]
    both = torch.stack([surrogate.values(fresh), torch.tensor([known.value(one) for one in fresh]).double()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8


def test_a_kl_that_is_no_number_is_said() -> None:
    surrogate = Surrogate([0.1, 0.1])
    for kl, slopes in ((float("nan"), torch.zeros(2)), (0.1, torch.tensor([0.0, float("inf")]))):
        with pytest.raises(SurgeryError, match="on window 3 is no number"):
            surrogate.saw((1, 0), 3, kl, slopes)


@pytest.mark.parametrize("out", [0, 1, 5, 6])
def test_a_search_ends_where_nothing_is_new(out: int) -> None:
    flat = table(6, 2, 1)
    space, fitness = Steep(flat.harm, flat.together, [[1.0, 0.0]] * 6), TableFitness()
    found = evopress(space, fitness, 6 - out, passes=50_000)  # type: ignore[arg-type]
    assert sum(found.levels) == out
    assert found.kl == pytest.approx(best(space, 6 - out))
    every = len(list(itertools.combinations(range(6), out)))
    assert found.token_forwards <= 10 * (6 + 3 * every * len(fitness))


@pytest.mark.parametrize("passes", range(40, 1500, 97))
def test_passes_are_kept_to(passes: int) -> None:
    flat = table(12, 2, 2)
    space = Steep(flat.harm, flat.together, [[1.0, 0.0]] * 12)
    found = evopress(space, TableFitness(), 8, passes=passes)  # type: ignore[arg-type]
    assert sum(found.levels) == 4
    # by a round of the search without a surrogate at most: 8 candidates on 2 windows, 3 on all
    assert found.token_forwards <= passes + 10 * (8 * 2 + 3 * 8)
