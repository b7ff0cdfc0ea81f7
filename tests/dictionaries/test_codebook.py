"""Codebooks beside brute force: nearest codes, straight-through gradients, forcing, exact activations in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.dictionaries.codebook import Combination, Similarity

SIMILAR: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cosine": lambda x, c: float(x @ c / c.norm()),
    "inner": lambda x, c: float(x @ c),
    "euclidean": lambda x, c: -float((x - c).norm()),
}
HEADS = "blocks.0.attn.hook_z"


def book(**how: Any) -> wb.Codebook:
    """Two groups of width 4 with nine codes of various lengths each."""
    made = wb.Codebook(8, 9, **{"groups": 2, "k": 3, "seed": 3} | how)
    made.codes.mul_(torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(5)) + 0.5)
    return made


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("similarity", get_args(Similarity))
@pytest.mark.parametrize("combine", get_args(Combination))
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("normalize_input", [False, True])
def test_brute_force(similarity: Any, combine: Any, k: int, normalize_input: bool) -> None:
    cb = book(similarity=similarity, combine=combine, k=k, normalize_input=normalize_input)
    x = inputs(7, 8)
    codes, made = cb.encode(x), cb.reconstruct(x)
    for row in range(7):
        for group in range(2):
            part = x[row, 4 * group : 4 * group + 4]
            if normalize_input:
                part = (part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt()
            order = sorted(range(9), key=lambda c: -SIMILAR[similarity](part, cb.codes[group, c]))[:k]
            assert [i - 9 * group for i in codes.indices[row, group * k : group * k + k].tolist()] == order
            total = sum(cb.codes[group, c] for c in order) / (1 if combine == "sum" else k)
            torch.testing.assert_close(made[row, 4 * group : 4 * group + 4], total)
    torch.testing.assert_close(codes.values, torch.full_like(codes.values, 1.0 if combine == "sum" else 1 / k))


def test_straight_through_gradients_by_hand() -> None:
    cb = book(combine="mean")
    cb.codes.requires_grad_()
    x, weights = inputs(5, 8).requires_grad_(), torch.randn(5, 8)
    (cb.reconstruct(x) * weights).sum().backward()
    assert torch.equal(x.grad, weights)
    wanted = torch.zeros(2, 9, 4)
    for row, chosen in enumerate(cb.encode(x).indices.tolist()):
        for index in chosen:
            group, code = divmod(index, 9)
            wanted[group, code] += weights[row, 4 * group : 4 * group + 4] / 3
    torch.testing.assert_close(cb.codes.grad, wanted)


@pytest.mark.parametrize("combine", get_args(Combination))
def test_the_reconstruction_loss_has_the_gradient_that_autograd_finds(combine: Any) -> None:
    cb, x = book(combine=combine), inputs(50, 8)
    cb.unit_out = 0.7
    step = cb.loss_and_gradients(x)
    codes = cb.codes.detach().clone().requires_grad_()
    made = torch.zeros(50, 2, 4)
    for column in cb.encode(x).indices.T:
        made = made + torch.nn.functional.one_hot(column // 9, 2)[:, :, None] * codes.flatten(0, 1)[column][:, None]
    loss = ((made * cb.weight).flatten(1) - x).square().sum(1).mean() / 0.7**2
    loss.backward()
    assert step.loss == pytest.approx(loss.item())
    torch.testing.assert_close(cb.codes.grad, codes.grad)
    assert int(step.fired.sum()) == 50 * 2 * 3


def test_k_means_finds_clusters_that_are_there() -> None:
    chance = torch.Generator().manual_seed(2)
    centres = 10 * torch.randn(6, 3, generator=chance)
    points = centres.repeat(100, 1) + 0.01 * torch.randn(600, 3, generator=chance)
    cb = wb.Codebook(3, 24, similarity="euclidean")
    cb.initialise(points)
    distances = torch.cdist(centres, cb.codes[0]).amin(1)
    assert float(distances.max()) < 0.05
    assert float((cb.reconstruct(points) - points).square().sum(1).mean()) < 0.01


def test_dead_codes_take_over_activations() -> None:
    cb, x = book(k=1), 5 + inputs(40, 8)
    dead = torch.zeros(18, dtype=torch.bool)
    dead[[0, 10]] = True
    before = cb.codes.clone()
    assert cb.resample(x, dead, generator=torch.Generator().manual_seed(0)) == 2
    changed = (cb.codes != before).any(-1).flatten()
    assert torch.equal(changed, dead)
    for group, code in ((0, 0), (1, 1)):
        near = torch.cdist(cb.codes[group, code][None], x.view(40, 2, 4)[:, group]).min()
        assert float(near) < 0.02 * 15


@pytest.mark.parametrize("replaces", ["least", "all", "none"])
@pytest.mark.parametrize("combine", get_args(Combination))
def test_forcing_by_hand(replaces: str, combine: Any) -> None:
    cb, x = book(combine=combine), inputs(6, 8)
    for index in (2, 11):
        group, code = divmod(index, 9)
        forced = cb.decode(cb.force(cb.encode(x), index, replaces)).view(6, 2, 4)
        plain = cb.reconstruct(x).view(6, 2, 4)
        assert torch.equal(forced[:, 1 - group], plain[:, 1 - group])
        for row in range(6):
            chosen = [i - 9 * group for i in cb.encode(x).indices[row].tolist() if i // 9 == group]
            weight = 1.0 if combine == "sum" else 1 / 3
            if replaces == "all":
                chosen, weight = [code], 1.0
            elif code not in chosen:
                chosen = [*chosen[: 2 if replaces == "least" else 3], code]
            wanted = sum(cb.codes[group, c] for c in chosen) * weight
            torch.testing.assert_close(forced[row, group], wanted)


def test_codes_forced_one_after_another_are_all_there() -> None:
    cb, x = book(combine="sum", k=2), inputs(6, 8)
    codes = cb.force(cb.force(cb.encode(x), 2, "least"), 4, "least")
    wanted = cb.codes[0, 2] + cb.codes[0, 4]
    torch.testing.assert_close(cb.decode(codes).view(6, 2, 4)[:, 0], wanted.expand(6, -1))
    beside = cb.decode(cb.force(cb.force(cb.encode(x), 2, "all"), 4, "none")).view(6, 2, 4)[:, 0]
    torch.testing.assert_close(beside, wanted.expand(6, -1))


def test_forcing_in_a_spliced_model_equals_replacing_the_activation(llama: wb.model.LanguageModel) -> None:
    point = llama.hook_points[HEADS]
    cb = wb.Codebook(point.width, 20, k=2, groups=point.shape[0], hook_point=HEADS)
    tokens = llama.to_tokens("The dog ran to the river and the cat")
    feature = cb.feature(23)  # code 3 of the second head
    seen = llama.capture(tokens, [HEADS])[HEADS].flatten(2)
    wanted = cb.reconstruct(seen)
    d = point.shape[1]
    for position in (2, 5):
        wanted[0, position, d : 2 * d] = cb.codes[1, 3]
    wanted = wanted.view(1, -1, *point.shape)

    class Replace:
        def bind(self, model: wb.model.LanguageModel, plan: object) -> list[Any]:
            from workbench.model.edits import Edit

            return [Edit(HEADS, lambda x: wanted)]

    with llama.intervening([Replace()]):
        by_hand = llama(tokens)
    with llama.spliced({HEADS: cb}):
        plain = llama(tokens)
        forced = llama.capture(tokens, [HEADS])
        with llama.intervening([wb.Force(feature, "all", positions=[2, 5])]):
            forced = llama(tokens)
    torch.testing.assert_close(forced, by_hand, rtol=1e-5, atol=1e-5)
    assert torch.equal(forced[:, :2], plain[:, :2])
    assert not torch.equal(forced[:, 2:], plain[:, 2:])


def test_a_codebook_of_the_exact_activations_leaves_the_logits(llama: wb.model.LanguageModel) -> None:
    tokens = llama.to_tokens("What is your favourite animal? My favourite animal is a dog.")
    point = "blocks.1.hook_resid_post"
    seen = llama.capture(tokens, [point])[point][0]
    cb = wb.Codebook(llama.hook_points[point].width, len(seen), similarity="euclidean", hook_point=point)
    cb.codes[0] = seen
    plain = llama(tokens)
    with llama.spliced({point: cb}):
        assert torch.equal(llama(tokens), plain)


def test_ablating_a_code_and_going_on_without_a_splice(llama: wb.model.LanguageModel) -> None:
    point = "blocks.0.hook_resid_post"
    cb = wb.Codebook(32, 12, k=2, hook_point=point, name="book")
    tokens = llama.to_tokens("The cat ran to the house")
    x = llama.capture(tokens, [point])[point]
    index = int(cb.encode(x).indices[0, 3, 0])
    with llama.intervening([wb.Ablate(cb.feature(index), positions=[3])]):
        ablated = llama.capture(tokens, [point])[point]
    torch.testing.assert_close(ablated[0, 3], x[0, 3] - cb.codes[0, index])
    assert torch.equal(ablated[0, :3], x[0, :3])
    with llama.intervening([wb.Force(cb.feature(index), positions=[3])]):
        assert torch.equal(llama.capture(tokens, [point])[point], x)  # it is active there already


def test_force_is_for_codes_only(llama: wb.model.LanguageModel) -> None:
    sae = wb.TopKSAE(32, 64, 4, hook_point="blocks.0.hook_resid_post", name="sae")
    for feature in (sae.feature(3), wb.Feature("neurons.0.gate", 3)):
        with pytest.raises(wb.dictionaries.DictionaryError, match="no discrete codes to force; hold its feature 3"):
            llama.generate("The dog", 3, interventions=[wb.Force(feature)])
    with pytest.raises(wb.model.EditError, match="'least', 'all' or 'none', not 'most'"):
        wb.Force(sae.feature(3), "most")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"d_in": 0}, "d_in is a whole number from 1, not 0"),
        ({"n_codes": True}, "n_codes is a whole number"),
        ({"groups": 3}, "A width of 8 can't be cut into 3 equal groups"),
        ({"k": 10}, "k is at most n_codes, 9, not 10"),
        ({"similarity": "dot"}, "similarity is 'cosine', 'inner' or 'euclidean', not 'dot'"),
        ({"combine": "max"}, "combine is 'sum' or 'mean', not 'max'"),
    ],
)
def test_bad_settings(how: dict[str, Any], words: str) -> None:
    with pytest.raises(wb.dictionaries.DictionaryError, match=words):
        wb.Codebook(**{"d_in": 8, "n_codes": 9, "k": 2} | how)
