"""What tokens and neurons do under thresholds, groups of neurons and their routers, and many threads at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from grammar import sentences
from test_threads import at_once

import workbench as wb
from workbench.corpus import Corpus, CorpusError
from workbench.sparsity.groups import balanced_clusters
from workbench.sparsity.masking import down_weights
from workbench.sparsity.neurons import kind_of

THRESHOLDS = [0.3, 0.2, 0.4]


def sizes(model: wb.model.LanguageModel, row: torch.Tensor) -> torch.Tensor:
    """Magnitudes of all contributions on a row of tokens, `[n_layers, pos, d_mlp]`."""
    points = [model.network.neuron_hook_point(layer, "post").name for layer in range(3)]
    seen = model.capture(row, points)
    found = [
        seen[name][0].abs() * weights.norm(dim=1) for name, weights in zip(points, down_weights(model), strict=True)
    ]
    return torch.stack(found)


# ---- Tokens


def test_what_each_token_takes(learned: wb.model.LanguageModel) -> None:
    text = "The small dog ran to the river. The old <|end|> mouse"
    found = wb.sparsity.token_activity(learned, THRESHOLDS, text)
    row = learned.to_tokens(text)
    assert [one.token for one in found] == row[0].tolist()
    assert [one.text for one in found] == learned.token_texts(row[0])
    active = sizes(wb.sparsity.with_sparsity(learned, THRESHOLDS), row) >= torch.tensor(THRESHOLDS)[:, None, None]
    for place, one in enumerate(found):
        for layer in range(3):
            assert one.by_layer[layer] == pytest.approx(int(active[layer, place].sum()) / 48)
        assert one.active == pytest.approx(int(active[:, place].sum()) / 144)
    with pytest.raises(CorpusError, match="no text"):
        wb.sparsity.token_activity(learned, THRESHOLDS, " ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" dog", "word"),
        ("dog", "inside a word"),
        (" Dog", "Capital"),
        ("DOG", "Capital"),
        (" 12", "number"),
        ("½", "number"),
        (" ...", "punctuation"),
        ("$", "punctuation"),
        ("\n\n", "white space"),
        ("", "white space"),
        ("'s", "other"),
        (" été", "word"),
    ],
)
def test_kinds_of_token(text: str, kind: str) -> None:
    assert kind_of(text) == kind


# ---- Neurons


def test_how_often_each_neuron_is_on(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    some = Corpus(corpus.texts[:4])
    found = wb.sparsity.neuron_activity(learned, THRESHOLDS, some, 4096, context=256)
    on, kinds = [], []
    for text in some.texts:
        row = learned.to_tokens(text)
        on.append((sizes(learned, row) >= torch.tensor(THRESHOLDS)[:, None, None])[:, 1:])  # the first does not count
        kinds += [kind_of(piece) for piece in learned.token_texts(row[0])[1:]]
    active = torch.cat(on, 1)  # [n_layers, n, d_mlp]
    assert found.tokens == len(kinds)
    assert torch.allclose(found.rates, active.float().mean(1), atol=1e-5)
    assert torch.equal(found.never(), ~active.any(1))
    assert torch.equal(found.always(1.0), active.all(1))
    for number, kind in enumerate(found.kinds):
        here = torch.tensor([one == kind for one in kinds])
        assert float(found.kind_shares[number]) == pytest.approx(float(here.float().mean()))
        share = active[:, here].sum(1) / active.sum(1).clamp(min=1)
        assert torch.allclose(found.by_kind[..., number], share, atol=1e-5)
    rows = found.one_kind(0.8, least=3)
    for feature, kind, share, rate in rows:
        layer = int(feature.dictionary.split(".")[1])
        column = active[layer, :, feature.index]
        inside = [bool(value) for value, one in zip(column, kinds, strict=True) if one == kind]
        assert share == pytest.approx(sum(inside) / int(column.sum()))
        assert share >= 0.8
        assert rate * len(kinds) >= 2.5
    assert len(found.one_kind(0.0, least=1)) == int((active.sum(1) >= 1).sum())
    part = wb.sparsity.neuron_activity(learned, THRESHOLDS, corpus, 4096, context=64, batch=1, cancel=lambda: True)
    assert part.tokens < 64


# ---- Groups


def test_balanced_clusters_find_what_belongs_together() -> None:
    chance = torch.Generator().manual_seed(3)
    truth = torch.randperm(30, generator=chance) % 3
    patterns = torch.nn.functional.normalize(torch.randn(200, 3, generator=chance), dim=0)
    noisy = patterns[:, truth] + 0.02 * torch.randn(200, 30, generator=chance)
    unit = torch.nn.functional.normalize(noisy, dim=0)
    found = balanced_clusters(unit.T @ unit, torch.arange(30) % 3, 3)
    assert torch.bincount(found).tolist() == [10, 10, 10]
    for one in range(30):
        for other in range(30):
            assert (found[one] == found[other]) == (truth[one] == truth[other])
    uneven = balanced_clusters(unit.T @ unit, torch.arange(30) % 4, 4)
    assert sorted(torch.bincount(uneven).tolist()) == [7, 7, 8, 8]


def test_groups_that_a_router_picks(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    first, second = corpus.split(0.5)
    how: dict[str, Any] = {"groups": 8, "tokens": 1024, "context": 64}
    groups = wb.sparsity.group_neurons(learned, THRESHOLDS, first, **how)
    control = wb.sparsity.group_neurons(learned, THRESHOLDS, first, by="random", **how)
    for one in (groups, control):
        assert all(torch.bincount(member).tolist() == [6] * 8 for member in one.member)
        assert one.apart == pytest.approx(groups.apart)
    assert all(mine > other for mine, other in zip(groups.together, control.together, strict=True))
    routing: dict[str, Any] = {"tokens": 512, "context": 64, "batch": 16, "resamples": 5}
    few, most, every = wb.sparsity.measure_routing(learned, groups, second, [2, 6, 8], **routing)
    assert every.outcome.ppl_increase == pytest.approx(0, abs=1e-6)
    assert few.outcome.ppl_increase > most.outcome.ppl_increase
    assert few.saved == pytest.approx(1 - 2 / 8 - 8 / (3 * 48))
    assert few.outcome.sparsity >= 0.75
    (oracle,) = wb.sparsity.measure_routing(learned, groups, second, [2], router="oracle", **routing)
    assert oracle.outcome.ppl_increase < few.outcome.ppl_increase
    assert oracle.saved == 0.75


def test_the_router_runs_the_groups_it_scores_highest(learned: wb.model.LanguageModel) -> None:
    """One text, layer by layer: the groups chosen by hand from the MLP's input, zeros put in for the others."""
    text = Corpus(sentences(1, 12))
    groups = wb.sparsity.group_neurons(learned, THRESHOLDS, Corpus(sentences(20, 13)), 4, 512, context=64)
    (found,) = wb.sparsity.measure_routing(learned, groups, text, [1], context=256, resamples=5)
    row = learned.to_tokens(text.texts[0])
    plain: Any = learned.network.module
    inputs: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(plain.model.layers):

        def before(module: Any, given: tuple, layer: int = layer) -> None:
            inputs[layer] = given[0][0]

        def pick(module: Any, given: tuple, layer: int = layer) -> tuple:
            values = given[0].clone()
            for place in range(values.shape[1]):
                scores = [
                    float(inputs[layer][place] @ groups.routers[layer][:-1, group] + groups.routers[layer][-1, group])
                    for group in range(4)
                ]
                for neuron in range(48):
                    if int(groups.member[layer, neuron]) != scores.index(max(scores)):
                        values[0, place, neuron] = 0
            return values, *given[1:]

        handles += [
            block.mlp.register_forward_pre_hook(before),
            block.mlp.down_proj.register_forward_pre_hook(pick),
        ]
    with torch.no_grad():
        logits = plain(input_ids=row, use_cache=False).logits[0, 1:-1]  # the first position does not count
    for handle in handles:
        handle.remove()
    assert found.outcome.ce == pytest.approx(float(torch.nn.functional.cross_entropy(logits, row[0, 2:])), rel=1e-4)


def test_groups_refused_in_one_sentence(learned: wb.model.LanguageModel, corpus: Corpus, zoo: Any) -> None:
    for how, words in (
        ({"groups": 1}, "from 2"),
        ({"groups": 49}, "48 neurons"),
        ({"by": "chance"}, "by is 'coactivation' or 'random'"),
    ):
        with pytest.raises(wb.sparsity.SparsityError, match=words):
            wb.sparsity.group_neurons(learned, 0.1, corpus, **how)
    groups = wb.sparsity.group_neurons(learned, 0.1, corpus, 4, 200, context=64)
    for how, words in (({"picked": [5]}, "1 to 4"), ({"picked": [1], "router": "best"}, "'linear' or 'oracle'")):
        with pytest.raises(wb.sparsity.SparsityError, match=words):
            wb.sparsity.measure_routing(learned, groups, corpus, **how)
    with pytest.raises(wb.sparsity.SparsityError, match="another model"):
        wb.sparsity.measure_routing(zoo["gpt2"], groups, corpus, [1])


# ---- Threads


def test_sessions_at_once_get_what_they_get_alone(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens = learned.to_tokens("The small dog ran to the")
        how: dict[str, Any] = {"tokens": 256, "context": 64, "batch": 16, "resamples": 5}
        jobs: list[Any] = [
            lambda: learned(tokens).tolist(),
            lambda: wb.sparsity.with_sparsity(learned, 0.2)(tokens).tolist(),
            lambda: wb.sparsity.with_sparsity(learned, THRESHOLDS).generate(tokens[0], 6, stop=False).logprobs,
            lambda: wb.measure_sparsity(learned, corpus, 0.01, **how).thresholds,
            lambda: wb.measure_sparsity(learned, corpus, 0.05, **how).baselines["top_k"].reported.ce,
            lambda: wb.sparsity.token_activity(learned, 0.3, "The old cat")[1].by_layer,
        ]
        alone = [job() for job in jobs]
        for expected, rounds in zip(alone, at_once(jobs), strict=True):
            assert all(found == expected for found in rounds)
    finally:
        torch.set_num_threads(before)


def test_a_model_that_runs_through_a_dictionary_stays_so(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    point = "blocks.1.hook_mlp_out"
    book = wb.Codebook(32, 20, hook_point=point)
    through = copy.copy(learned)
    through.splices = {point: book}
    row = learned.to_tokens("The small dog")
    sparse = wb.sparsity.with_sparsity(learned, 0.3)
    with sparse.spliced({point: book}):
        expected = sparse(row)
    assert torch.equal(wb.sparsity.with_sparsity(through, 0.3)(row), expected)
    found = wb.measure_sparsity(through, corpus, 0.05, 256, baselines=(), context=64, batch=16, resamples=5)
    with pytest.raises(wb.sparsity.SparsityError, match="plain modules"):
        wb.sparsity.verify_sparsity(through, found, corpus)
