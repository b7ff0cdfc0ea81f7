"""Searches for levels within a budget, against trying everything; skipping against plain hooks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import reference
import tiny
import torch
from torch import Tensor, nn

import workbench as wb
from workbench.interventions import RemoveLayer, RemoveSublayer
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.sublayers import SublayerDropping, drop_sublayers
from workbench.surgery.registry import Cancelled, apply_operation
from workbench.surgery.search.baselines import even, greedy, harms, ranked, uniform
from workbench.surgery.search.budgets import Candidate, CandidateEvaluator
from workbench.surgery.search.evopress import _starts, evopress, search
from workbench.surgery.search.fitness import DenseKL

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])


def kl_of(model: wb.model.LanguageModel, module: nn.Module, context: int, tokens: int) -> float:
    """KL(dense ‖ changed) over the tokens of a corpus, one prediction at a time."""
    total, count = 0.0, 0
    for batch in CORPUS.batches(model, context, 1, tokens, 0):
        with torch.no_grad():
            dense, changed = (m(input_ids=batch.tokens).logits for m in (model.network.module, module))
        for place in range(batch.tokens.shape[1]):
            if batch.content[0, place]:
                total += float(reference.kl(dense[0, place], changed[0, place]))
                count += 1
    return total / count


class Table:
    """Levels whose KL is a known function: what each part adds alone, and what pairs add together."""

    def __init__(self, harm: Tensor, together: Tensor, costs: Sequence[Sequence[float]]):
        self.harm, self.together, self.costs = harm, together, costs
        self.parts = [f"part {number}" for number in range(len(costs))]
        self.module: Any = self
        self.now: Candidate = ()

    def set(self, levels: Candidate) -> None:
        self.now = levels

    def value(self, levels: Candidate) -> float:
        x = torch.tensor(levels).double()
        return float(self.harm.double() @ x.square() + x @ self.together.double() @ x)


class TableFitness:
    """What `DenseKL` is to models; every window says the same."""

    window_tokens, token_forwards = 10.0, 0

    def __len__(self) -> int:
        return 8

    def tokens_of(self, window: int) -> int:
        return 10

    def on(self, table: Table, window: int) -> tuple[float, int]:
        self.token_forwards += 10
        return 3 * table.value(table.now), 3


def table(parts: int, levels: int, seed: int) -> Table:
    chance = torch.Generator().manual_seed(seed)
    harm = torch.rand(parts, generator=chance)
    together = 0.3 * torch.rand(parts, parts, generator=chance).triu(1)
    sizes = torch.randint(1, 4, (parts,), generator=chance).tolist()
    return Table(harm, together, [[size * (levels - level) for level in range(levels)] for size in sizes])


def best(space: Table, budget: float) -> float:
    """The least value within the budget, by trying everything."""
    return min(
        space.value(levels)
        for levels in itertools.product(*(range(len(costs)) for costs in space.costs))
        if sum(costs[level] for costs, level in zip(space.costs, levels, strict=True)) <= budget
    )


@pytest.mark.parametrize(("parts", "levels"), [(10, 2), (6, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evopress_finds_the_best_within_the_budget(parts: int, levels: int, seed: int) -> None:
    space = table(parts, levels, seed)
    budget = 0.6 * sum(costs[0] for costs in space.costs)
    found = evopress(space, TableFitness(), budget, passes=40_000, seed=seed)  # type: ignore[arg-type]
    assert found.cost <= budget
    assert found.kl == pytest.approx(space.value(found.levels))
    assert found.kl == pytest.approx(best(space, budget))
    assert space.now == found.levels
    assert found.token_forwards < 42_000


@pytest.mark.parametrize("method", ["greedy", "ranked", "uniform", "evopress"])
def test_every_search_keeps_to_its_budget_and_counts(method: str) -> None:
    space, fitness = table(8, 3, 5), TableFitness()
    whole = sum(costs[0] for costs in space.costs)
    for share in (0.9, 0.5, 1 / 3):
        before = fitness.token_forwards
        found = search(space, fitness, share * whole, method, passes=3000)  # type: ignore[arg-type]
        assert found.cost <= share * whole * (1 + 1e-9)
        assert found.cost == sum(costs[level] for costs, level in zip(space.costs, found.levels, strict=True))
        assert found.token_forwards == fitness.token_forwards - before
        assert found.kl == pytest.approx(space.value(found.levels))
        assert found.chosen == {f"part {n}": level for n, level in enumerate(found.levels) if level}


def test_greedy_takes_the_least_harmful_step_each_time() -> None:
    space = table(9, 2, 3)
    space.costs = [[1.0, 0.0]] * 9
    found = greedy(space, TableFitness(), 5, passes=1000)  # type: ignore[arg-type]
    levels = [0] * 9
    for _ in range(4):
        trials = []
        for part in range(9):
            if not levels[part]:
                trials.append((space.value((*levels[:part], 1, *levels[part + 1 :])), part))
        levels[min(trials)[1]] = 1
    assert found.levels == tuple(levels)
    assert found.evaluations == 9 + 8 + 7 + 6
    alone = ranked(space, TableFitness(), 5, passes=1000)  # type: ignore[arg-type]
    assert {n for n, level in enumerate(alone.levels) if level} == set(space.harm.argsort()[:4].tolist())


def test_a_search_begins_from_several_sets_that_are_little_harmful_alone() -> None:
    """The six parts that are least harmful alone are bad together, and with so few passes there is little else."""
    harm = torch.linspace(0.1, 1.0, 30)
    together = torch.zeros(30, 30)
    together[:6, :6] = torch.ones(6, 6).triu(1)
    space = Table(harm, together, [[1.0, 0.0]] * 30)
    evaluator = CandidateEvaluator(space, TableFitness(), 24, passes=1500)  # type: ignore[arg-type]
    alone = harms(evaluator, [0])
    assert alone == pytest.approx(harm.tolist())
    starts = _starts(evaluator, alone, torch.Generator().manual_seed(0))
    assert len(set(starts)) > 12
    assert all(sum(one) == 6 for one in starts)
    assert starts[0] == (1,) * 6 + (0,) * 24
    chosen = torch.tensor(starts).double().mean(0)
    assert chosen[:6].mean() > 0.6  # by far the most often, and yet seldom all of them
    assert chosen[15:].mean() < 0.05
    assert min(map(space.value, starts)) < space.value(starts[0]) / 2


def test_even_spreads_are_even() -> None:
    space = table(12, 2, 0)
    space.costs = [[1.0, 0.0]] * 12
    for gone in (1, 3, 4, 6):
        levels = even(space, 12 - gone)
        places = [n for n, level in enumerate(levels) if level]
        assert len(places) == gone
        assert {b - a for a, b in itertools.pairwise(places)} <= {12 // gone}
    three = uniform(space, TableFitness(), 9, passes=1000)  # type: ignore[arg-type]
    assert three.kl == min(space.value(even(space, 9, n / 12)) for n in range(12))


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_fitness_is_the_kl_of_every_prediction(name: str, zoo) -> None:
    model = zoo[name]
    fitness = DenseKL(model, CORPUS, 60, context=20)
    other = tiny.build(name, seed=4)
    assert fitness(other) == pytest.approx(kl_of(model, other, 20, 60), rel=2e-3)
    assert fitness(model.network.module) == pytest.approx(0, abs=1e-5)
    lengths = [batch.tokens.shape[1] for batch in CORPUS.batches(model, 20, 1, 60, 0)]
    assert fitness.token_forwards == 2 * sum(lengths)
    assert len(fitness) == len(lengths)
    one = fitness(other, [1])
    assert fitness.token_forwards == 2 * sum(lengths) + lengths[1]
    assert one != fitness(other, [0])


def test_costs_are_those_of_every_prediction(llama: wb.model.LanguageModel) -> None:
    fitness, other = DenseKL(llama, CORPUS, 60, context=20), tiny.build("llama", seed=4)
    for module in (other, llama.network.module):
        found = fitness.costs(module)
        assert found.kl == pytest.approx(kl_of(llama, module, 20, 60), rel=2e-3, abs=1e-5)
        losses = []
        for batch in CORPUS.batches(llama, 20, 1, 60, 0):
            scores = reference.logits_under(module, batch.tokens)[0].double().log_softmax(-1)
            for place in range(batch.tokens.shape[1] - 1):
                if batch.content[0, place] and batch.content[0, place + 1]:
                    losses.append(-float(scores[place, batch.tokens[0, place + 1]]))
        assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)
    assert fitness.costs().perplexity == pytest.approx(found.perplexity, rel=1e-3)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_skipping_is_writing_zero(name: str, zoo) -> None:
    model, plain = zoo[name], tiny.build(name)
    space = SublayerDropping(model)
    tokens = torch.arange(24).view(2, 12)
    n = model.network.n_layers
    assert len(space.parts) == 2 * n
    for levels in itertools.islice(itertools.product([0, 1], repeat=2 * n), 0, 2 ** (2 * n), 5):
        space.set(levels)
        edits = [
            reference.PlainEdit(plain.get_submodule(_place(model, *one)), "out", torch.zeros_like)
            for level, group in zip(levels, space.sublayers, strict=True)
            if level
            for one in group
        ]
        with torch.no_grad():
            made = space.module(input_ids=tokens, use_cache=False).logits
        assert torch.allclose(made, reference.logits_under(plain, tokens, edits), atol=1e-5)
    space.set((0,) * (2 * n))
    with torch.no_grad():
        assert torch.equal(space.module(input_ids=tokens, use_cache=False).logits, model(tokens))


def _place(model: wb.model.LanguageModel, layer: int, part: str) -> str:
    return str(model.hook_points[f"blocks.{layer}.hook_{'attn' if part == 'attention' else 'mlp'}_out"].module)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("method", ["evopress", "greedy"])
def test_the_child_is_what_the_search_had_in_place(name: str, method: str, zoo) -> None:
    model = zoo[name]
    child, found = drop_sublayers(model, CORPUS, 0.5, method=method, passes=2000, tokens=40, context=20)
    space = SublayerDropping(model)
    space.set(found.levels)
    tokens = torch.arange(30).view(2, 15)
    with torch.no_grad():
        assert torch.allclose(child.model(tokens), space.module(input_ids=tokens, use_cache=False).logits, atol=1e-4)
    assert sum(found.levels) == model.network.n_layers
    every = itertools.product([0, 1], repeat=len(found.levels))
    fitness = DenseKL(model, CORPUS, 40, context=20)
    kls = {}
    for levels in every:
        if sum(levels) == sum(found.levels):
            space.set(levels)
            kls[levels] = fitness(space.module)
    if method == "evopress":
        assert kls[found.levels] <= sorted(kls.values())[len(kls) // 5]  # it judges on draws of windows, not on all


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_slopes_are_those_of_shares_that_are_left_out(name: str, whole: bool, zoo) -> None:
    model, plain = zoo[name], tiny.build(name).double()
    space, fitness = SublayerDropping(model, whole=whole), DenseKL(model, CORPUS, 40, context=20)
    levels = tuple(part % 2 for part in range(len(space.parts)))
    before = fitness.token_forwards
    value, found = space.slopes(fitness, levels, [0, 1])
    windows = [batch.tokens for batch in CORPUS.batches(model, 20, 1, 40, 0)][:2]
    assert fitness.token_forwards - before == 2 * sum(window.numel() for window in windows)
    contents = [batch.content[0] for batch in CORPUS.batches(model, 20, 1, 40, 0)][:2]

    def kl(shares: list[float]) -> float:
        """With these shares of the parts left out, by hooks that multiply."""
        edits = [
            reference.PlainEdit(
                plain.get_submodule(_place(model, *one)), "out", lambda x, share=share: x * (1.0 - share)
            )
            for share, group in zip(shares, space.sublayers, strict=True)
            for one in group
        ]
        total, count = 0.0, 0
        for tokens, content in zip(windows, contents, strict=True):
            dense = reference.logits_under(plain, tokens)[0, content].log_softmax(-1)
            changed = reference.logits_under(plain, tokens, edits)[0, content].log_softmax(-1)
            total += float((dense.exp() * (dense - changed)).sum())
            count += int(content.sum())
        return total / count

    assert value == pytest.approx(kl([float(level) for level in levels]), rel=1e-4)
    for part in range(len(levels)):
        ends = [[float(level) for level in levels] for _ in range(2)]
        ends[0][part] += 1e-3
        ends[1][part] -= 1e-3
        slope = (kl(ends[0]) - kl(ends[1])) / 2e-3
        assert float(found[part]) == pytest.approx(slope, rel=0.02, abs=2e-3 * float(found.abs().max()))
    space.set((0,) * len(levels))
    with torch.no_grad():  # nothing is left behind
        assert torch.equal(space.module(input_ids=windows[0], use_cache=False).logits, model(windows[0]))


class Steep(Table):
    """Levels 0 and 1 of known value whose slopes are known too."""

    def slopes(self, fitness: TableFitness, levels: Candidate, windows: Sequence[int]) -> tuple[float, Tensor]:
        fitness.token_forwards += 20 * len(windows)
        x = torch.tensor(levels).double().requires_grad_()
        value = self.harm.double() @ x.square() + x @ self.together.double() @ x
        value.backward()
        assert x.grad is not None
        return value.item(), x.grad.float()


def test_with_slopes_better_parts_are_found_in_equal_passes() -> None:
    parts, values = 24, {Steep: [], Table: []}
    for seed in range(8):
        flat = table(parts, 2, seed)
        for kind, found_values in values.items():
            space = kind(flat.harm, flat.together, [[1.0, 0.0]] * parts)
            found = evopress(space, TableFitness(), parts - 8, passes=3000, seed=seed)  # type: ignore[arg-type]
            assert sum(found.levels) == 8
            assert found.token_forwards < 3300
            found_values.append(space.value(found.levels))
    assert sum(values[Steep]) < sum(values[Table])
    assert all(guided <= blind * 1.02 for guided, blind in zip(values[Steep], values[Table], strict=True))


def test_whole_layers_leave_the_model(llama: wb.model.LanguageModel) -> None:
    space = SublayerDropping(llama, whole=True)
    assert space.parts == ["layer 0", "layer 1", "layer 2"]
    assert space.edits((0, 1, 0)) == [RemoveLayer(1)]
    assert SublayerDropping(llama).edits((1, 0, 1, 1, 0, 1)) == [
        RemoveLayer(1),
        RemoveSublayer(0, "attention"),
        RemoveSublayer(2, "mlp"),
    ]
    child, found = drop_sublayers(llama, CORPUS, 0.34, whole=True, passes=500, tokens=40, context=20)
    assert child.model.network.n_layers == 2
    assert len(found.chosen) == 1
    again = apply_operation(llama, "drop_sublayers", share=0.34, whole=True, passes=500, tokens=40, corpus="stories")
    assert again.model.network.n_layers == 2


def test_what_cannot_be_skipped(llama: wb.model.LanguageModel) -> None:
    for share in (0.0, 1.0, 1.5, -0.2, 0.01):
        with pytest.raises(SurgeryError, match="some of the 6 sublayers go and some stay"):
            drop_sublayers(llama, CORPUS, share)
    with pytest.raises(SurgeryError, match="share is a number, not nan"):
        drop_sublayers(llama, CORPUS, float("nan"))
    with pytest.raises(SurgeryError, match="has the layers 0 to 2"):
        SublayerDropping(llama, layers=[3])
    with pytest.raises(SurgeryError, match="method is 'evopress', 'greedy'"):
        drop_sublayers(llama, CORPUS, method="hope")
    with pytest.raises(Cancelled):
        drop_sublayers(llama, CORPUS, cancel=lambda: True, passes=10_000, tokens=40, context=20)
    space, fitness = SublayerDropping(llama), DenseKL(llama, CORPUS, 40, context=20)
    for budget in (-1.0, 7.0):
        with pytest.raises(SurgeryError, match="between 0 and 6"):
            greedy(space, fitness, budget, passes=100)
    with pytest.raises(SurgeryError, match="whole number from 1"):
        uniform(space, fitness, 3, passes=0)
    with pytest.raises(SurgeryError, match="last step keeps 1"):
        evopress(space, fitness, 3, passes=100, selection=[(2, 1)])
