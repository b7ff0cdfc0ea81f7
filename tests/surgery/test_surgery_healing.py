"""Small fine-tunes against plain PyTorch, and what they leave alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.interventions import RemoveSublayer
from workbench.model.weights import parameters_of
from workbench.surgery.child import SurgeryError
from workbench.surgery.finetuning.healer import Decay
from workbench.surgery.finetuning.healing import heal
from workbench.surgery.operations.masks import kept
from workbench.surgery.operations.matrices import matrices, out_in
from workbench.surgery.operations.pruning import prune

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
HOW = {"tokens": 4 * 2 * 16, "batch": 2, "context": 16, "lr": 1e-3}


def weights(model: wb.model.LanguageModel) -> dict[str, Tensor]:
    return parameters_of(model.network.module)


def loss(module: nn.Module, batch) -> Tensor:
    """Mean cross-entropy of the next token, where it and the one before count."""
    logits = module(input_ids=batch.tokens, attention_mask=batch.mask.long()).logits
    total, count = logits.new_zeros(()), 0
    for row in range(len(batch.tokens)):
        for place in range(batch.tokens.shape[1] - 1):
            if batch.content[row, place] and batch.content[row, place + 1]:
                total = total - logits[row, place].log_softmax(-1)[batch.tokens[row, place + 1]]
                count += 1
    return total / count


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_full_training_is_adam_on_the_cross_entropy(name: str, zoo) -> None:
    child = heal(zoo[name], CORPUS, warmup=0.0, decay=0.0, clip=None, **HOW)
    plain = tiny.build(name)
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
    batches = CORPUS.batches(zoo[name], 16, 2, seed=0, repeat=True)
    learned = 0
    while learned < HOW["tokens"]:
        optimiser.zero_grad()
        batch = next(batches)
        loss(plain, batch).backward()
        optimiser.step()
        learned += int(batch.content.sum())
    assert child.history[-1]["done"] == learned
    for place, wanted in parameters_of(plain).items():
        if place.endswith(("c_attn.bias", "query_key_value.bias")):
            continue  # softmax does not see the keys' bias: its gradient is rounding, which Adam makes large
        assert torch.allclose(weights(child.model)[place], wanted, atol=2e-4), place
    assert fingerprint(weights(zoo[name])) == zoo[name].weights_hash


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_low_rank_addition_is_one_of_that_rank(name: str, zoo) -> None:
    child = heal(zoo[name], CORPUS, rank=2, **HOW)
    moved = [f"{path}.weight" for path in matrices(zoo[name])]
    assert set(child.own) == set(moved)
    for place in moved:
        delta = (weights(child.model)[place] - weights(zoo[name])[place]).double()
        singular = torch.linalg.svdvals(delta)
        assert singular[1] > 1e-5
        assert singular[2] < 1e-5 * singular[0] + 1e-6
    assert fingerprint(weights(zoo[name])) == zoo[name].weights_hash


def test_learning_helps_and_goes_on_after_a_break(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    lines: list[float] = []
    how = {"batch": 2, "context": 32, "lr": 3e-3, "seed": 1, "tokens": 40 * 64}
    whole = heal(llama, CORPUS, log=lambda line: lines.append(line["loss"]), **how)
    assert sum(lines[-5:]) < 0.7 * sum(lines[:5])
    asked = 0

    def enough() -> bool:
        nonlocal asked
        asked += 1
        return asked > 15

    part = heal(llama, CORPUS, folder=tmp_path / "run", cancel=enough, **how)
    assert 0 < part.history[-1]["done"] < how["tokens"]
    again = heal(llama, CORPUS, folder=tmp_path / "run", **how)
    assert again.model.hash == whole.model.hash
    assert heal(llama, CORPUS, folder=tmp_path / "run", **how).model.hash == whole.model.hash


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [None, 2])
def test_what_was_cut_stays_cut(name: str, rank: int | None, zoo) -> None:
    pruned = prune(zoo[name], score="magnitude", pattern="2:4")
    cut = wb.bake(pruned.model, [RemoveSublayer(1, "mlp")])
    healed = heal(cut, CORPUS, rank=rank, **HOW)
    for path in matrices(cut.model):
        before, after = (m.network.module.get_submodule(path).weight for m in (cut.model, healed.model))
        assert torch.equal(before == 0, after == 0)
    assert healed.model.hash != cut.model.hash
    free = heal(cut, CORPUS, keep_zeros=False, **HOW)
    path = matrices(cut.model)[0]
    assert int((free.model.network.module.get_submodule(path).weight == 0).sum()) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_masks_come_slowly(name: str, zoo) -> None:
    model = zoo[name]
    seen = []
    plain = tiny.build(name)
    weight = out_in(plain.get_submodule(matrices(model)[0])).clone()
    healed = heal(model, CORPUS, sparsify=Decay(pattern="2:4", until=0.5), log=seen.append, **HOW)
    for path in matrices(model):
        made = out_in(healed.model.network.module.get_submodule(path))
        zeros = (made == 0).reshape(made.shape[0], -1, 4).sum(-1)
        assert zeros.unique().tolist() == [2]
    assert seen[0]["loss"] == pytest.approx(float(loss(plain, next(CORPUS.batches(model, 16, 2, seed=0)))), rel=1e-4)
    once = heal(model, CORPUS, sparsify=Decay(pattern="2:4", until=0.0), log=seen.append, **HOW)
    at_once = next(line for line in seen[1:] if line["step"] == 1)
    pruned = prune(model, score="magnitude", pattern="2:4")
    first = loss(pruned.model.network.module, next(CORPUS.batches(model, 16, 2, seed=0)))
    assert at_once["loss"] == pytest.approx(float(first), rel=1e-4)
    assert once.model.hash != healed.model.hash
    assert kept(weight.abs(), 0, "2:4").any()


def test_some_parameters_alone_learn(llama: wb.model.LanguageModel) -> None:
    child = heal(llama, CORPUS, only=r"layers\.1\..*norm", **HOW)
    assert set(child.own) == {f"model.layers.1.{name}_layernorm.weight" for name in ("input", "post_attention")}


def test_what_cannot_be_healed(llama: wb.model.LanguageModel) -> None:
    cases = {
        "whole number from 1, or None": lambda: {"rank": 0},
        "nothing to train": lambda: {"only": "nowhere"},
        "no regular expression": lambda: {"only": "("},
        "leave out": lambda: {"only": "mlp", "rank": 2},
        "tokens is a whole": lambda: {"tokens": 0},
        "lr is a number": lambda: {"lr": math.inf},
        "warmup is a number from 0 to 1": lambda: {"warmup": 2},
        "groups of 5": lambda: {"sparsify": Decay(pattern="2:5")},
        "from 0 below 1": lambda: {"sparsify": Decay(1.0, "row")},
        "until is a number from 0 to 1": lambda: {"sparsify": Decay(until=-1)},
    }
    for said, change in cases.items():
        with pytest.raises(SurgeryError, match=said):
            heal(llama, CORPUS, **(HOW | change()))
