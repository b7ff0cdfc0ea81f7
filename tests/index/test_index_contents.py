"""Every number of an index equals a plain loop over dense codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from index_models import HOW, POINT, World, ordered

import workbench as wb
from workbench.corpus import Corpus
from workbench.dictionaries.jumprelu import JumpReLUSAE
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.index.cofiring import SAMPLE
from workbench.index.selection import AFTER, BEFORE, LOWEST, TOP


def test_entries_are_those_of_a_plain_loop(sae_world: World) -> None:
    index = sae_world.index
    assert index.n_tokens == len(sae_world.codes)
    for feature in range(index.n_features):
        column = sae_world.codes[:, feature]
        rows, values = index.entries.of(feature)
        wanted = ordered(column)
        assert rows.tolist() == wanted.tolist()
        assert np.array_equal(values, column[wanted])
        assert np.array_equal(index.top(feature, 7)[0], wanted[:7])
        every = np.arange(index.n_tokens)
        assert np.array_equal(index.entries.at(feature, every), column.astype(np.float32))


@pytest.mark.parametrize("which", ["sae_world", "neuron_world"])
def test_statistics(which: str, request) -> None:
    world: World = request.getfixturevalue(which)
    for feature in range(world.index.n_features):
        column = world.codes[:, feature].astype(np.float64)
        active = column[column != 0]
        card = world.index.feature(feature)
        assert card.active == len(active)
        assert card.density == pytest.approx(len(active) / len(column))
        if len(active) == 0:
            assert card.top_examples == []
            assert sum(card.histogram.counts) == 0
            continue
        assert card.mean == pytest.approx(active.mean(), rel=1e-5)
        assert (card.highest, card.lowest) == (active.max(), active.min())
        counts, edges = np.histogram(active, 32, (min(active.min(), 0), max(active.max(), 0)))
        assert card.histogram.counts == counts.tolist()
        assert card.histogram.edges == pytest.approx(edges.tolist())


def context(world: World, row: int) -> list[int]:
    """Rows shown around a row: as far as each is the next token of the text."""
    texts, positions = world.seen.texts.tolist(), world.seen.positions.tolist()
    begin = end = row
    first, last = max(row - BEFORE, 0), min(row + AFTER, len(texts) - 1)
    while begin > first and (texts[begin - 1], positions[begin - 1] + 1) == (texts[begin], positions[begin]):
        begin -= 1
    while end < last and (texts[end + 1], positions[end + 1] - 1) == (texts[end], positions[end]):
        end += 1
    return list(range(begin, end + 1))


@pytest.mark.parametrize("which", ["sae_world", "neuron_world"])
def test_examples_in_context(which: str, request) -> None:
    world: World = request.getfixturevalue(which)
    for feature in range(0, world.index.n_features, 3):
        card = world.index.feature(feature)
        column = world.codes[:, feature]
        ranked = ordered(column)
        assert [example.row for example in card.top_examples] == ranked[:TOP].tolist()
        for example in [*card.top_examples, *card.quantile_examples, *card.lowest_examples]:
            rows = context(world, example.row)
            assert example.tokens == world.model.token_texts(world.seen.tokens[rows])
            assert example.activations == column[rows].astype(np.float32).tolist()
            assert rows[example.peak] == example.row
            assert example.value == column[example.row]
            assert example.text == world.seen.texts[example.row]
            assert example.position == world.seen.positions[example.row]
        if world.index.entries.signed:
            assert [example.row for example in card.lowest_examples] == ranked[::-1][:LOWEST].tolist()
        place = {row: rank for rank, row in enumerate(ranked.tolist())}
        for example in card.quantile_examples:
            quantile = 1 - (place[example.row] + 0.5) / len(ranked)
            slack = 0 if world.index.entries.keep is None else 0.05
            assert example.band[0] - slack <= quantile <= example.band[1] + slack
        json.dumps(card.to_dict(), allow_nan=False)


def test_promoted_tokens_and_neighbours(sae_world: World, neuron_world: World, corpus: Corpus, tmp_path: Path) -> None:
    model = sae_world.model
    head = model.network.module.get_output_embeddings().weight.detach()
    gain, _ = model.network.final_norm()
    transcoder = TopKTranscoder(32, 9, 3, d_out=48, reads=POINT, writes="blocks.1.mlp.hook_post")
    post = wb.build_index(model, transcoder, corpus, tmp_path / "post", **HOW)
    hidden = TopKSAE(32, 9, 3, hook_point="blocks.1.attn.hook_z")
    assert wb.build_index(model, hidden, corpus, tmp_path / "z", **HOW).feature(0).promoted == []
    down = model.network.neuron_weights(1, "down")
    for index, vectors, directions in (
        (sae_world.index, sae_world.dictionary.W_dec * gain, sae_world.dictionary.W_dec),
        (post, transcoder.W_dec @ down * gain, transcoder.W_dec),
        (neuron_world.index, *[model.network.neuron_weights(1, "gate")] * 2),
    ):
        cosines = torch.nn.functional.cosine_similarity(directions[:, None], directions[None], dim=-1)
        for feature in range(index.n_features):
            card = index.feature(feature)
            scores = head @ vectors[feature]
            best = scores.topk(10)
            assert [token.id for token in card.promoted] == best.indices.tolist()
            assert [token.score for token in card.promoted] == pytest.approx(best.values.tolist(), rel=1e-4)
            assert [token.token for token in card.promoted] == model.token_texts(best.indices)
            assert [token.id for token in card.suppressed] == scores.topk(10, largest=False).indices.tolist()
            cosines[feature, feature] = -2
            near = cosines[feature].topk(8)
            assert [other.index for other in card.neighbours] == near.indices.tolist()
            assert [other.cosine for other in card.neighbours] == pytest.approx(near.values.tolist(), abs=1e-5)


def test_cofiring(sae_world: World, neuron_world: World) -> None:
    active = sae_world.codes != 0
    share = active.mean(0)
    for feature in range(sae_world.index.n_features):
        wanted = []
        for other in range(active.shape[1]):
            both = (active[:, feature] & active[:, other]).sum()
            if other != feature and both >= 2:
                given = both / active[:, feature].sum()
                pmi = math.log(given / share[other])
                if pmi > 0:
                    wanted.append((given * pmi, other, given, pmi))
        wanted = sorted(wanted, reverse=True)[:8]
        found = sae_world.index.feature(feature).cofiring
        if active[:, feature].sum() > SAMPLE:  # then they are estimates
            for one in found:
                given = (active[:, feature] & active[:, one.index]).sum() / active[:, feature].sum()
                assert one.share == pytest.approx(given, abs=0.04)
            continue
        assert [one.share * one.pmi for one in found] == pytest.approx([one[0] for one in wanted], rel=1e-4)
        for one in found:
            assert one.share == pytest.approx(
                (active[:, feature] & active[:, one.index]).sum() / active[:, feature].sum()
            )
    assert neuron_world.index.feature(0).cofiring == []


def test_an_index_that_keeps_less(sae_world: World, tmp_path: Path) -> None:
    small = wb.build_index(sae_world.model, sae_world.dictionary, sae_world.corpus, tmp_path / "i", keep=60, **HOW)
    assert max(np.diff(small.entries.offsets)) == 60
    fuller = 0
    for feature in range(small.n_features):
        ranked = ordered(sae_world.codes[:, feature])
        rows, _ = small.entries.of(feature)
        assert rows[:30].tolist() == ranked[:30].tolist()
        assert set(rows.tolist()) <= set(ranked.tolist())
        one, other = small.feature(feature), sae_world.index.feature(feature)
        assert one.top_examples == other.top_examples
        assert (one.density, one.histogram, one.cofiring) == (other.density, other.histogram, other.cofiring)
        if len(ranked) > 60:
            fuller += 1
            beyond = small.examples(feature, n=5, start=22)
            assert any(None in example.activations for example in beyond)
            for name, wrong in (("n", {"n": -3}), ("start", {"start": -2})):
                with pytest.raises(wb.index.FeatureIndexError, match=f"{name} is a whole number from 0"):
                    small.examples(feature, **wrong)
            assert all(example.activations[example.peak] == example.value for example in beyond)
    assert fuller > 3


def test_a_kind_with_any_number_of_latents_and_a_dead_one(llama, corpus: Corpus, tmp_path: Path) -> None:
    sae = JumpReLUSAE(32, 20, hook_point=POINT, name="jump")
    sae.b_enc[4] = -1e6
    world = World(wb.build_index(llama, sae, corpus, tmp_path / "i", **HOW), llama, sae, corpus)
    test_entries_are_those_of_a_plain_loop(world)
    assert world.index.feature(4).active == 0
    assert [hit.index for hit in world.index.search(density=(0, 0))] == [4]


def test_what_fires_on_a_prompt(sae_world: World, neuron_world: World) -> None:
    for world, top in ((sae_world, 20), (neuron_world, 5)):
        fired = world.index.fires_on("The dog ran.", top)
        tokens = world.model.to_tokens("The dog ran.")
        with torch.no_grad():
            x = world.model.capture(tokens, [world.dictionary.reads])[world.dictionary.reads][0]
            dense = world.dictionary.encode(x).dense()
        assert [one.token for one in fired] == world.model.token_texts(tokens[0])
        assert not fired[0].features  # the first position, where an attention sink stands
        for one, row in zip(fired[1:], dense[1:], strict=True):
            best = sorted(((float(v), f) for f, v in enumerate(row) if v != 0), reverse=True)[:top]
            assert list(zip(one.values, one.features, strict=True)) == best
    with pytest.raises(wb.index.FeatureIndexError, match="model"):
        wb.open_index(sae_world.index.path).fires_on("The dog")


@pytest.mark.real
def test_a_prompt_is_read_behind_bos_as_the_texts_were(model: wb.model.LanguageModel, tmp_path: Path) -> None:
    sae = wb.TopKSAE(576, 64, 4, hook_point="blocks.2.hook_resid_post", name="sae")
    text = "The dog ran to the river."
    index = wb.build_index(model, sae, wb.Corpus([text]), tmp_path / "index")
    fired = index.fires_on(text)
    bos = torch.tensor([[model.tokenizer.bos_token_id]])
    tokens = torch.cat([bos, model.to_tokens(text)], 1)
    codes = sae.encode(model.capture(tokens, [sae.reads])[sae.reads][0, 1:])
    assert [one.token for one in fired] == model.token_texts(tokens[0, 1:])
    for one, values, indices in zip(fired, codes.values, codes.indices, strict=True):
        assert dict(zip(one.features, one.values, strict=True)) == pytest.approx(
            dict(zip(indices.tolist(), values.tolist(), strict=True)), rel=1e-4
        )
    with pytest.raises(wb.model.PromptError, match="longer than the 8,192 tokens"):
        index.fires_on("dog " * 9000)
    with pytest.raises(wb.model.PromptError, match="empty"):
        index.fires_on(" ")


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_architecture(zoo, corpus: Corpus, tmp_path: Path, name: str) -> None:
    neurons = wb.build_index(zoo[name], "neurons.1.up", corpus, tmp_path / "i", tokens=300, **HOW)
    assert neurons.n_tokens == 300
    assert len(neurons.feature(5).promoted) == 10
