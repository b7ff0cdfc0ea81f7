"""Interventions on latents of trained dictionaries against plain hooks that add the difference of decodings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import reference
import tiny
import torch
from pairs import (
    HEADS,
    INDEX,
    KINDS,
    LATENTS,
    LAYER,
    MLP_IN,
    MLP_OUT,
    PROMPT,
    RESID,
    RULES,
    TOKENS,
    close,
    latents,
    plain_latents,
)
from reference import logits_under, seen_at
from torch import Tensor

import workbench as wb
from workbench.dictionaries.relu import SkipTranscoder
from workbench.dictionaries.topk import TopKSAE
from workbench.interventions.features import REFERENCE_TEXTS, mean_value

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LATENTS)
def test_latent_interventions_equal_a_plain_hook(pairs, case: str, kind: str, rule: Any) -> None:
    pair, dictionary = pairs["llama"], latents(case)
    make, change = KINDS[kind]

    def edit(position: int, codes: Tensor) -> Tensor:
        if reference.chosen(rule, position, PROMPT):
            codes[:, INDEX] = change(codes[:, INDEX])
        return codes

    expected = logits_under(pair.plain, TOKENS, plain_latents(pair, dictionary, edit))
    assert close(pair.logits([make(dictionary.feature(INDEX), rule)]), expected)


@pytest.mark.parametrize("case", LATENTS)
def test_a_later_change_of_a_latent_sees_what_an_earlier_one_left(pairs, case: str) -> None:
    """At other positions, and with an intervention elsewhere in between."""
    pair, dictionary = pairs["llama"], latents(case)
    f = dictionary.feature(INDEX)

    def edit(position: int, codes: Tensor) -> Tensor:
        if position < PROMPT:
            codes[:, INDEX] = 2.0
        codes[:, INDEX] *= 3.0
        if position in (0, 7):
            codes[:, INDEX] += 1.0
            codes[:, 3] += 0.5
        return codes

    plain = [*plain_latents(pair, dictionary, edit), pair.edit("post", torch.zeros_like, "all", 5, 2)]
    edits = [
        wb.Clamp(f, 2.0, positions="prompt"),
        wb.Scale(f, 3.0),
        wb.Ablate("neurons.2.post:5"),
        wb.Steer(f, 1.0, positions=[0, 7]),
        wb.Steer(dictionary.feature(3), 0.5, positions=[0, 7]),
    ]
    assert close(pair.logits(edits), logits_under(pair.plain, TOKENS, plain))


@pytest.mark.parametrize("case", LATENTS)
def test_latents_that_keep_their_value_change_no_bit(pairs, case: str) -> None:
    model, dictionary = pairs["llama"].model, latents(case)
    f, plain = dictionary.feature(INDEX), model(TOKENS)
    there = model.capture(TOKENS, [dictionary.reads])[dictionary.reads].flatten(2)
    values = dictionary.encode(there).value_of(INDEX)
    silent = [position for position in range(TOKENS.shape[1]) if not values[:, position].any()]
    for edits in ([wb.Scale(f, 1.0)], [wb.Steer(f, 0.0)], [wb.Clamp(f, 0.0, positions=silent)]):
        with model.intervening(edits):
            assert torch.equal(model(TOKENS), plain)
    with model.intervening([wb.Clamp(f, 3.0, positions=[4])]):
        after = model.capture(TOKENS, [dictionary.writes])[dictionary.writes]
    before = model.capture(TOKENS, [dictionary.writes])[dictionary.writes]
    others = torch.arange(TOKENS.shape[1]) != 4
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.equal(after[:, 4], before[:, 4])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("case", LATENTS)
def test_latents_with_and_without_cache(pairs, case: str, rule: Any) -> None:
    model, f = pairs["llama"].model, latents(case).feature(INDEX)
    edits = [wb.Clamp(f, 6.0, positions=rule), wb.Scale(f, 1.5, positions="generated")]
    written = model.generate(TOKENS[0, :PROMPT], 6, interventions=edits, stop=False).tokens
    with model.intervening(edits):
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == written


@pytest.mark.parametrize("case", LATENTS)
def test_mean_ablation_of_a_latent_leaves_out_first_tokens(pairs, case: str) -> None:
    pair, dictionary = pairs["llama"], latents(case)
    block = pair.plain.model.layers[LAYER]
    place, side = {
        RESID: (block, "out"),
        HEADS: (block.self_attn.o_proj, "in"),
        MLP_IN: (block.post_attention_layernorm, "out"),
    }[dictionary.reads]
    rows = [tiny.tokenizer()(text).input_ids[: tiny.CONTEXT] for text in REFERENCE_TEXTS]
    seen = [seen_at(pair.plain, place, side, torch.tensor([row]))[0, 1:] for row in rows]  # [pos, 32] each
    values = [dictionary.encode(x).dense()[:, INDEX] for x in seen]
    mean = float(torch.cat(values).double().mean())
    assert mean_value(pair.model, dictionary, INDEX) == pytest.approx(mean, rel=1e-4)
    f = dictionary.feature(INDEX)
    assert close(pair.logits([wb.Ablate(f, "mean")]), pair.logits([wb.Clamp(f, mean)]))


def test_latents_in_a_file(pairs, tmp_path) -> None:
    model, file = pairs["llama"].model, tmp_path / "edits.json"
    one, other = latents("on heads"), latents("of a transcoder")
    other.name = "other"
    edits = [wb.Clamp(one.feature(3), 2.0), wb.Scale("neurons.1.gate:7", 2.0), wb.Steer(other.feature(4), 1.5)]
    wb.interventions.save_interventions(file, model, edits)
    said = json.loads(file.read_text())["dictionaries"]
    assert said == [{"name": "mine", "hash": one.hash}, {"name": "other", "hash": other.hash}]
    stranger = latents("on heads", seed=5)  # the same name, other weights
    loaded = wb.interventions.load_interventions(file, model, [stranger, other, one])
    assert loaded == edits
    assert loaded[0].feature.source is one
    assert torch.equal(pairs["llama"].logits(loaded), pairs["llama"].logits(edits))
    for given, words in (
        ([other], "need the dictionary mine"),
        ([stranger, other], "with mine of the hash"),
        ([], "mine"),
    ):
        with pytest.raises(wb.dictionaries.DictionaryError, match=words):
            wb.interventions.load_interventions(file, model, given)
    with pytest.raises(wb.dictionaries.DictionaryError, match="are called mine"):
        wb.interventions.save_interventions(
            file, model, [wb.Clamp(one.feature(3), 2.0), wb.Clamp(stranger.feature(3), 2.0)]
        )
    assert wb.interventions.load_interventions(file, model, [one, other]) == edits, "the file was touched"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopKSAE(32, 48, 5, name="mine"), "mine does not say where"),
        (lambda: TopKSAE(16, 48, 5, hook_point=RESID, name="mine"), "mine reads activations of width 16"),
        (lambda: SkipTranscoder(32, 48, d_out=8, reads=MLP_IN, writes=MLP_OUT, name="mine"), "mine writes activations"),
        (lambda: SkipTranscoder(32, 48, reads=MLP_OUT, writes=MLP_IN, name="mine"), "mine can't act"),
    ],
)
def test_latents_that_cannot_act_are_refused(pairs, make: Any, words: str) -> None:
    model = pairs["llama"].model
    with (
        pytest.raises(wb.dictionaries.DictionaryError, match=words),
        model.intervening([wb.Clamp(make().feature(3), 1.0)]),
    ):
        pytest.fail("the block was entered")
    with (
        pytest.raises(wb.model.EditError, match="position 40"),
        model.intervening([wb.Clamp(latents("on heads").feature(3), 1.0, positions=[40])]),
    ):
        model(TOKENS)


@pytest.mark.parametrize(
    "between",
    [
        wb.Steer.along(MLP_OUT, torch.ones(32), 0.5),
        wb.interventions.RemoveSublayer(LAYER, "mlp"),
        wb.interventions.AblateDirection(torch.arange(1.0, 33.0)),
    ],  # type: ignore[arg-type]
    ids=lambda one: type(one).__name__,
)
def test_a_change_after_another_edit_of_the_hook_point_acts_after_it(pairs, between: Any) -> None:
    """What the later change adds is there whatever the edit between did with what the earlier one added."""
    model, dictionary = pairs["llama"].model, latents("of a transcoder")
    first, last = wb.Steer(dictionary.feature(INDEX), 2.0), wb.Steer(dictionary.feature(3), 1.5)
    seen = []
    for edits in ([first, between], [first, between, last]):
        with model.intervening(edits):
            seen.append(model.capture(TOKENS, [MLP_OUT])[MLP_OUT])
    added = (1.5 * dictionary.direction(3)).expand_as(seen[0])
    assert torch.allclose(seen[1] - seen[0], added, atol=1e-5)
