"""Pruning and rounding against loops over single weights, on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import tiny
import torch
from torch import Tensor, nn

import workbench as wb
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.masks import kept
from workbench.surgery.operations.matrices import MatrixLevels, as_stored, input_norms, matrices, out_in
from workbench.surgery.operations.pruning import prune, search_sparsity
from workbench.surgery.operations.quantising import quantise, rounded, search_bits
from workbench.surgery.registry import Cancelled, apply_operation
from workbench.surgery.search.fitness import DenseKL

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
MATRICES = {"llama": 21, "gpt2": 8, "neox": 8, "mistral": 21, "qwen2": 14}


def slow_kept(score: Tensor, gone: int) -> Tensor:
    """All but the `gone` lowest scores of a list."""
    values = score.tolist()
    lowest = set(sorted(range(len(values)), key=values.__getitem__)[:gone])
    return torch.tensor([place not in lowest for place in range(len(values))])


def test_what_is_kept() -> None:
    score = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([slow_kept(row, 5) for row in score])
    assert torch.equal(kept(score, 5 / 12, "row"), rows)
    assert torch.equal(kept(score, 0.45, "row"), rows)  # rounded down
    assert torch.equal(kept(score, 0.5, "matrix"), slow_kept(score.flatten(), 36).view(6, 12))
    fours = torch.cat([torch.stack([slow_kept(row[at : at + 4], 3) for row in score]) for at in (0, 4, 8)], 1)
    assert torch.equal(kept(score, 0.0, "1:4"), fours)
    assert bool(kept(score, 0.0).all())
    alike = kept(torch.zeros(3, 8), 0.5, "row")
    assert alike.sum(1).tolist() == [4, 4, 4]  # no more than asked, also where scores are equal


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_lengths_of_inputs(name: str, zoo) -> None:
    model, plain = zoo[name], tiny.build(name)
    found = input_norms(model, CORPUS, 50, context=20, batch=2)
    assert list(found) == matrices(model)
    assert len(found) == MATRICES[name]
    for path in list(found)[::3]:
        total: Tensor | float = 0.0
        for batch in CORPUS.batches(model, 20, 2, 50, 0):
            module = plain.get_submodule(path)
            seen = reference.seen_at(plain, module, "in", batch.tokens)
            for row in range(len(seen)):
                for place in range(seen.shape[1]):
                    if batch.content[row, place]:
                        total = total + seen[row, place].double() ** 2
        assert torch.allclose(found[path].double(), torch.as_tensor(total).sqrt(), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("pattern", ["row", "matrix", "2:4"])
def test_pruned_models(name: str, score: str, pattern: str, zoo, tmp_path: Path) -> None:
    model, plain = zoo[name], tiny.build(name)
    child = prune(model, 0.5, score=score, pattern=pattern, corpus=CORPUS, tokens=50)
    norms = input_norms(model, CORPUS, 50)
    for path in matrices(model):
        module = plain.get_submodule(path)
        weight = out_in(module).clone(memory_format=torch.contiguous_format)
        value = weight.abs() * (norms[path] if score == "wanda" else 1)
        groups = {"row": value, "matrix": value.view(1, -1), "2:4": value.view(-1, 4)}[pattern]
        for group, at in zip(groups, weight.view(groups.shape), strict=True):
            at[~slow_kept(group, len(group) // 2)] = 0
        with torch.no_grad():
            module.weight.copy_(as_stored(module, weight))
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(child.model(tokens), reference.logits_under(plain, tokens), atol=1e-5)
    assert len(child.own) == MATRICES[name]
    child.save_pretrained(tmp_path / "pruned")
    assert torch.equal(wb.load_model(tmp_path / "pruned")(tokens), child.model(tokens))
    assert torch.equal(child.undo()(tokens), reference.logits_under(tiny.build(name), tokens))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_to_the_nearest_value(bits: int) -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    made = rounded(weight, bits)
    for row, new in zip(weight, made, strict=True):
        step = float(row.abs().max()) / (2 ** (bits - 1) - 1)
        values = [step * number for number in range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))]
        wanted = [min(values, key=lambda value, x=x: abs(value - x)) for x in row.tolist()]
        assert torch.allclose(new, torch.tensor(wanted), atol=1e-6)
        assert len(set(new.tolist())) <= 2**bits - 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rounded_models(name: str, zoo) -> None:
    model, plain = zoo[name], tiny.build(name)
    last = matrices(model)[-1]
    child = quantise(model, 4, per_part={last: 2})
    for path in matrices(model):
        module: nn.Module = plain.get_submodule(path)
        with torch.no_grad():
            module.weight.copy_(as_stored(module, rounded(out_in(module), 2 if path == last else 4)))
    tokens = torch.arange(20).view(2, 10)
    assert torch.allclose(child.model(tokens), reference.logits_under(plain, tokens), atol=1e-5)
    assert apply_operation(model, "quantise", bits=4).model.hash != child.model.hash


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_levels_of_matrices_are_put_in_place_and_taken_back(name: str, zoo) -> None:
    model = zoo[name]
    space = MatrixLevels(model, [lambda _, w: rounded(w, 4), lambda _, w: rounded(w, 2)], [16, 4, 2])
    tokens = torch.arange(20).view(2, 10)
    chance = torch.Generator().manual_seed(0)
    for _ in range(4):
        levels = tuple(torch.randint(3, (len(space.parts),), generator=chance).tolist())
        space.set(levels)
        bits = {path: (16, 4, 2)[level] for path, level in zip(space.parts, levels, strict=True)}
        plain = tiny.build(name)
        for path, number in bits.items():
            module = plain.get_submodule(path)
            if number < 16:
                with torch.no_grad():
                    module.weight.copy_(as_stored(module, rounded(out_in(module), number)))
        with torch.no_grad():
            made = space.module(input_ids=tokens).logits
        assert torch.allclose(made, reference.logits_under(plain, tokens), atol=1e-5)
    space.set((0,) * len(space.parts))
    with torch.no_grad():
        assert torch.equal(space.module(input_ids=tokens).logits, model(tokens))


@pytest.mark.parametrize("method", ["evopress", "greedy", "uniform"])
def test_searches_keep_their_budget(method: str, llama: wb.model.LanguageModel) -> None:
    how = {"method": method, "passes": 10_000, "tokens": 40, "context": 20}
    child, found = search_sparsity(llama, CORPUS, 0.5, levels=(0.25, 0.5, 0.75), **how)
    zeros = sum(int((child.model.network.module.get_submodule(path).weight == 0).sum()) for path in matrices(llama))
    whole = sum(llama.network.module.get_submodule(path).weight.numel() for path in matrices(llama))
    assert zeros >= 0.5 * whole - 32 * len(found.parts)
    fitness = DenseKL(llama, CORPUS, 40, context=20)
    coarse, chosen = search_bits(llama, CORPUS, 4.0, levels=(6, 4, 3, 2), **how)
    bits = [(16, 6, 4, 3, 2)[level] for level in chosen.levels]
    sizes = [llama.network.module.get_submodule(path).weight.numel() for path in chosen.parts]
    assert sum(b * n for b, n in zip(bits, sizes, strict=True)) <= 4 * sum(sizes)
    again = quantise(llama, 4, per_part={path: b for path, b in zip(chosen.parts, bits, strict=True) if b < 16})
    if 16 not in bits:
        assert again.model.hash == coarse.model.hash
    assert fitness(coarse.model.network.module) > 0


def test_what_cannot_be_pruned(llama: wb.model.LanguageModel) -> None:
    for sparsity in (1.0, -0.1, 2, float("nan"), True):
        with pytest.raises(SurgeryError, match="from 0 below 1"):
            prune(llama, sparsity, score="magnitude")
    for pattern, said in {
        "4:2": "N from 1",
        "0:4": "N from 1",
        "x:4": "N from 1",
        "2:5": "groups of 5",
        "col": "row",
    }.items():
        with pytest.raises(SurgeryError, match=said):
            prune(llama, score="magnitude", pattern=pattern)
    with pytest.raises(SurgeryError, match="score is 'magnitude' or 'wanda'"):
        prune(llama, score="hessian")
    with pytest.raises(SurgeryError, match="no matrix 'lm_head'"):
        prune(llama, score="magnitude", sparsities={"lm_head": 0.5})
    with pytest.raises(SurgeryError, match="'row' or 'matrix'"):
        search_sparsity(llama, CORPUS, pattern="2:4")
    with pytest.raises(SurgeryError, match="at most the highest of levels"):
        search_sparsity(llama, CORPUS, 0.9, tokens=40, context=20, passes=100)
    with pytest.raises(SurgeryError, match="must fall"):
        search_bits(llama, CORPUS, levels=(3, 4))
    for bits in (1, 17, 4.5, True):
        with pytest.raises(SurgeryError, match="from 2 to 16"):
            quantise(llama, bits)  # type: ignore[arg-type]
    with pytest.raises(Cancelled):
        prune(llama, cancel=lambda: True, score="magnitude")
    with pytest.raises(Cancelled):
        quantise(llama, cancel=lambda: True)


def test_a_pattern_has_its_own_sparsity(llama: wb.model.LanguageModel) -> None:
    assert wb.surgery.prune(llama, 0.5, score="magnitude", pattern="1:4").history[-1]["sparsity"] == 0.75
    path = matrices(llama)[0]
    with pytest.raises(wb.surgery.SurgeryError, match="one sparsity for all"):
        wb.surgery.prune(llama, score="magnitude", pattern="2:4", sparsities={path: 0.0})
