"""Judging scores against brute force, the codes of heads, and models whose circuit is known."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.circuits import (
    METHODS,
    GroundTruth,
    TaskError,
    attribution_patching,
    evaluate_scores,
    evaluate_task,
    greater_than_model,
    induction_model,
    patch_components,
    patch_edges,
    roc_auc,
    roc_curve,
    strongest_components,
)
from workbench.circuits.discrete import count_exclusive, count_pairs, find_circuit_discrete, head_outputs
from workbench.circuits.discrete_sae import loss_and_gradients, train_coder

POSITIVES = ["The dog ran to the", "The cat ran to the", "The dog and the cat", "The cat and the dog"]
NEGATIVES = ["The dog and to the", "The cat and to the", "The dog ran the cat", "The cat ran the dog"]
MADE = {"induction": induction_model, "greater-than": greater_than_model}


# ---- scores


@pytest.mark.parametrize("seed", range(6))
def test_roc_auc_counts_pairs(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5 if seed % 2 else 1000, (4, 9), generator=chance).float()
    circuit = torch.rand(4, 9, generator=chance) < 0.3
    inside, outside = scores[circuit].tolist(), scores[~circuit].tolist()
    won = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    assert roc_auc(scores, circuit) == pytest.approx(won / (len(inside) * len(outside)))
    false, true = roc_curve(scores, circuit)
    area = sum(
        (b - a) * (c + d) / 2
        for (a, b), (c, d) in zip(itertools.pairwise(false), itertools.pairwise(true), strict=True)
    )
    assert area == pytest.approx(roc_auc(scores, circuit))


def test_a_judgement_worked_out_by_hand() -> None:
    scores = torch.tensor([5.0, 4.0, 3.0, 3.0, 1.0])
    circuit = torch.tensor([True, False, True, False, True])
    found = evaluate_scores(scores, circuit)
    assert (found.chosen, found.precision, found.recall) == (4, 0.5, 2 / 3)
    assert found.auc == pytest.approx((2 + 0.5 + 0) / 6)
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)
    assert found.to_dict()["chosen"] == 4


def test_the_strongest_tenth_is_the_circuit() -> None:
    effects = torch.tensor([[0.1, -3.0, 0.0], [2.0, 0.0, 0.3]])
    assert strongest_components(effects, 0.3).tolist() == [[False, True, False], [True, False, False]]
    assert int(strongest_components(torch.rand(30, 9)).sum()) == 27


@pytest.mark.parametrize(
    ("scores", "circuit", "said"),
    [
        (torch.zeros(3), torch.zeros(3), "neither none nor all"),
        (torch.zeros(3), torch.ones(3), "neither none nor all"),
        (torch.zeros(3), torch.ones(2), "the circuit is"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([1, 0]), "no numbers"),
    ],
)
def test_what_can_t_be_judged(scores: Tensor, circuit: Tensor, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        evaluate_scores(scores, circuit)


# ---- codes


@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_the_gradients_are_those_of_autograd(shift: float) -> None:
    """Also where many rows and latents are silent and left out."""
    chance = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(40, 12, generator=chance).double()
    encoder, decoder = (
        torch.nn.functional.normalize(torch.randn(20, 12, generator=chance).double(), dim=1) for _ in range(2)
    )
    weights = [
        encoder,
        torch.randn(20, generator=chance).double() - shift,
        decoder,
        torch.randn(12, generator=chance).double(),
    ]
    loss, slopes = loss_and_gradients(x, *weights, l1=0.05)
    free = [one.clone().requires_grad_() for one in weights]
    latents = ((x - free[3]) @ free[0].T + free[1]).relu()
    expected = (latents @ free[2] + free[3] - x).square().mean() + 0.05 * latents.sum(1).mean()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()))
    assert (float((latents > 0).any(1).double().mean()) < 1) == (shift > 0)
    for number, (one, slope) in enumerate(zip(free, slopes, strict=True)):
        wanted: Any = one.grad
        if number in (0, 2):
            wanted = wanted - (wanted * one.detach()).sum(1, keepdim=True) * one.detach()
        assert torch.allclose(slope, wanted, atol=1e-12)
        assert bool(wanted.any())


def test_learning_codes_lowers_the_loss_and_keeps_unit_rows() -> None:
    chance = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(6, 16, generator=chance), dim=1)
    which = torch.randint(6, (200,), generator=chance)
    x = 10 * directions[which] + 0.01 * torch.randn(200, 16, generator=chance)
    coder = train_coder(x, features=30, l1=0.02, lr=5e-3, epochs=600)
    assert coder.losses[-1] < 0.2 * coder.losses[0]
    for rows in (coder.encoder, coder.decoder):
        assert torch.allclose(rows.norm(dim=1), torch.ones(30), atol=1e-5)
    codes = coder.codes(x)
    for direction in range(6):
        assert len(codes[which == direction].unique()) == 1
    assert int(coder.codes(torch.zeros(1, 16) + coder.centre - 1e6 * coder.encoder.sum(0))) in range(31)


def test_exclusive_codes_equal_sets() -> None:
    chance = torch.Generator().manual_seed(2)
    positive, negative = (torch.randint(0, 4, (n, 3, 2), generator=chance) for n in (6, 3))
    found = count_exclusive(positive.flatten(1), negative.flatten(1)).view(3, 2)
    pairs = count_pairs(positive, negative, 4)
    for place in itertools.product(range(3), range(2)):
        mine = {int(one[place]) for one in positive} - {int(one[place]) for one in negative}
        assert int(found[place]) == len(mine)
        for other in itertools.product(range(3), range(2)):
            both = [{(int(one[place]), int(one[other])) for one in kind} for kind in (positive, negative)]
            assert int(pairs[place + other]) == (len(both[0] - both[1]) if other[0] > place[0] else 0)


def test_head_outputs_add_up(zoo: Any) -> None:
    """Heads together are the attention's output without its bias, mean over positions."""
    for kind in ("llama", "gpt2"):
        model = zoo[kind]
        outputs, count = head_outputs(model, POSITIVES, NEGATIVES)
        assert (count, len(outputs)) == (4, 8)
        tokens = torch.stack(sorted((model.to_tokens(text)[0] for text in POSITIVES), key=lambda row: row.tolist()))
        for layer in range(model.network.n_layers):
            name = f"blocks.{layer}.hook_attn_out"
            whole = model.capture(tokens, [name])[name].mean(1)
            rest = whole - outputs[:4, layer].sum(1)
            assert torch.allclose(rest, rest[:1].expand_as(rest), atol=1e-4)


def test_scores_are_the_same_for_the_same_seed_and_any_order(llama: wb.model.LanguageModel) -> None:
    how = {"epochs": 40, "examples": 5, "features": 30, "l1": 1e-4}
    one = find_circuit_discrete(llama, POSITIVES, NEGATIVES, **how)
    two = find_circuit_discrete(llama, POSITIVES[::-1], [NEGATIVES[place] for place in (2, 0, 3, 1)], **how)
    assert torch.equal(one.heads, two.heads)
    assert torch.equal(one.edges, two.edges)
    assert torch.equal(one.positive_codes, two.positive_codes)
    assert torch.equal(wb.find_heads_discrete(llama, POSITIVES, NEGATIVES, **how), one.heads)
    assert one.heads.shape == (3, 4)
    assert one.edges.shape == (3, 4, 3, 4)
    other = find_circuit_discrete(llama, POSITIVES, NEGATIVES, **how, seed=1)
    assert not torch.equal(one.positive_codes, other.positive_codes)
    tokens = torch.cat([llama.to_tokens(text) for text in POSITIVES])
    assert torch.equal(wb.find_heads_discrete(llama, tokens, NEGATIVES, **how), one.heads)


def test_refused_in_one_sentence(llama: wb.model.LanguageModel) -> None:
    for positives, negatives, said in (
        ([], NEGATIVES, "no positive prompts"),
        (POSITIVES, [], "no negative prompts"),
        (POSITIVES, "The dog", "negatives is a list of texts or a Tensor, not 'The dog'"),
        (POSITIVES, ["The"], "the negative ones 1"),
        (["The", "The dog ran"], NEGATIVES, "the same number of tokens"),
    ):
        with pytest.raises(TaskError, match=said):
            wb.find_heads_discrete(llama, positives, negatives)
    for name in ("examples", "features", "epochs"):
        with pytest.raises(TaskError, match=f"{name} is a whole number"):
            wb.find_heads_discrete(llama, POSITIVES, NEGATIVES, **{name: 0})
    for how in ({"l1": float("nan")}, {"l1": -1.0}, {"lr": 0.0}, {"lr": "x"}, {"seed": 1.5}, {"seed": "x"}):
        with pytest.raises(TaskError, match=f"{next(iter(how))} is a"):
            wb.find_heads_discrete(llama, POSITIVES, NEGATIVES, **how)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="cancelled"):
        wb.find_heads_discrete(llama, POSITIVES, NEGATIVES, cancel=lambda: True)


# ---- models set by hand


@functools.cache
def known(kind: str, seed: int, distractors: int = 0) -> GroundTruth:
    """A model with a known circuit; tests share it."""
    return MADE[kind](seed, distractors)


@pytest.mark.parametrize("kind", list(MADE))
@pytest.mark.parametrize("distractors", [0, 4])
def test_the_model_does_its_task_with_its_circuit(kind: str, distractors: int) -> None:
    made = known(kind, 1, distractors)
    task = made.task(16, 0)
    done = evaluate_task(made.model, task)
    assert done.accuracy == done.first == 1.0
    assert abs(done.corrupted) < 1.5
    assert done.logit_difference > 5
    for method in METHODS:
        assert evaluate_scores(patch_components(made.model, task, method).heads.abs(), made.heads).auc == 1.0
    if kind == "induction":
        assert evaluate_scores(attribution_patching(made.model, task).heads.abs(), made.heads).auc == 1.0


@pytest.mark.parametrize("kind", list(MADE))
def test_the_edges_of_the_circuit_are_the_strongest(kind: str) -> None:
    made = known(kind, 0)
    task = made.task(8, 0)
    pairs = [(0, head, 1, other) for head in range(8) for other in range(8)]
    effects = patch_edges(made.model, task, pairs)
    truth = torch.stack([made.edges[pair] for pair in pairs])
    assert roc_auc(effects.abs(), truth) == 1.0


@pytest.mark.parametrize("kind", list(MADE))
def test_the_finder_finds_the_circuit(kind: str) -> None:
    """Mean over 5 seeds of the model, of the prompts, and of the finder; 10 positive prompts."""
    found = []
    for seed in range(5):
        made = known(kind, seed)
        task = made.task(10, seed)
        scores = wb.find_heads_discrete(made.model, task.positives, task.corrupted, seed=seed)
        found.append(roc_auc(scores, made.heads))
    assert sum(found) / len(found) >= 0.95
