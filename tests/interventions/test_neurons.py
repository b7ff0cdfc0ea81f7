"""Interventions on neurons against plain PyTorch hooks on the plain model: every kind, site and position rule."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from pairs import (
    INDEX,
    KINDS,
    LAYER,
    PLACES,
    PROMPT,
    RULES,
    TOKENS,
    close,
)
from reference import PlainEdit, at_index, logits_under, seen_at

import workbench as wb
from workbench.dictionaries.neurons import Neurons
from workbench.interventions.features import REFERENCE_TEXTS

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_neuron_interventions_equal_a_plain_hook(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    pair = pairs[name]
    make, change = KINDS[kind]
    expected = logits_under(pair.plain, TOKENS, [pair.edit(site, change, rule)], PROMPT)
    found = pair.logits([make(f"neurons.{LAYER}.{site}:{INDEX}", rule)])
    assert close(found, expected)
    assert not close(found, logits_under(pair.plain, TOKENS)), "the edit should have changed something"


def test_several_at_once_act_in_stated_order(pairs) -> None:
    pair = pairs["llama"]
    f, g = f"neurons.{LAYER}.gate:{INDEX}", f"neurons.{LAYER}.gate:3"
    chain = [
        (wb.Clamp(f, 2.0), pair.edit("gate", lambda old: torch.full_like(old, 2.0), "all")),
        (wb.Scale(f, 3.0, positions="prompt"), pair.edit("gate", lambda old: old * 3, "prompt")),
        (wb.Steer(g, 1.5), pair.edit("gate", lambda old: old + 1.5, "all", index=3)),
        (wb.Steer(f, -0.5), pair.edit("gate", lambda old: old - 0.5, "all")),
        (wb.Ablate(f, positions=[1]), pair.edit("gate", torch.zeros_like, (1,))),
        (wb.Clamp("neurons.0.post:5", 4.0), pair.edit("post", lambda old: torch.full_like(old, 4.0), "all", 5, 0)),
        (wb.Scale("neurons.2.up:5", 4.0), pair.edit("up", lambda old: old * 4, "all", 5, 2)),
    ]
    forward = pair.logits([ours for ours, _ in chain])
    backward = pair.logits([ours for ours, _ in reversed(chain)])
    assert close(forward, logits_under(pair.plain, TOKENS, [plain for _, plain in chain], PROMPT))
    assert close(backward, logits_under(pair.plain, TOKENS, [plain for _, plain in reversed(chain)], PROMPT))
    assert not close(forward, backward)


def test_clamp_then_scale_is_not_scale_then_clamp(pairs) -> None:
    """2 tripled is 6; whatever it was, tripled and then set to 2, is 2."""
    model, f = pairs["llama"].model, f"neurons.{LAYER}.up:{INDEX}"
    name = f"blocks.{LAYER}.mlp.hook_pre_linear"
    for edits, value in (([wb.Clamp(f, 2.0), wb.Scale(f, 3.0)], 6.0), ([wb.Scale(f, 3.0), wb.Clamp(f, 2.0)], 2.0)):
        with model.intervening(edits):
            assert (model.capture(TOKENS, [name])[name][..., INDEX] == value).all()


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_mean_ablation_takes_the_mean_over_the_reference_texts(pairs, name: str, site: str) -> None:
    pair = pairs[name]
    place, side = tiny.mlp(pair.plain, LAYER)[site]
    rows = [tiny.tokenizer()(text).input_ids[: tiny.CONTEXT] for text in REFERENCE_TEXTS]
    values = [seen_at(pair.plain, place, side, torch.tensor([row]))[0, :, INDEX] for row in rows]
    mean = float(torch.cat(values).double().mean())
    expected = logits_under(pair.plain, TOKENS, [pair.edit(site, lambda old: torch.full_like(old, mean), "all")])
    assert close(pair.logits([wb.Ablate(f"neurons.{LAYER}.{site}:{INDEX}", "mean")]), expected)


def test_mean_is_that_of_the_plain_model(pairs) -> None:
    """Other interventions in force do not move the mean that an ablation sets."""
    model, name = pairs["llama"].model, f"blocks.{LAYER}.mlp.hook_pre"
    ablate = wb.Ablate(f"neurons.{LAYER}.gate:{INDEX}", "mean")
    with model.intervening([ablate]):
        alone = model.capture(TOKENS, [name])[name][0, 0, INDEX]
    with model.intervening([wb.Clamp("neurons.0.post:3", 50.0), ablate]):
        beside = model.capture(TOKENS, [name])[name][0, 0, INDEX]
    assert torch.equal(alone, beside)


def test_both_sides_of_a_name_clash_stay_apart(pairs) -> None:
    """Two loaded dictionaries with the same name are two dictionaries."""
    model = pairs["llama"].model
    one = Neurons("mine", "blocks.0.mlp.hook_post", 48)
    other = Neurons("mine", "blocks.1.mlp.hook_post", 48)
    seen = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    with model.intervening([wb.Clamp(one.feature(3), 5.0), wb.Clamp(other.feature(4), 6.0)]):
        found = model.capture(TOKENS, seen)
    assert (found[seen[0]][..., 3] == 5).all()
    assert (found[seen[1]][..., 4] == 6).all()
    assert not (found[seen[0]][..., 4] == 6).any()


@pytest.mark.real
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_default_model_clamped_equals_a_plain_hook(model, plain_default, rule: Any) -> None:
    tokens = model.to_tokens("My favourite animal is a very small and")
    prompt = 4
    edits = [wb.Clamp("neurons.29.gate:808", 20.0, positions=rule), wb.Scale("neurons.23.up:1413", -3.0)]
    plain = [
        PlainEdit(*tiny.mlp(plain_default, 29)["gate"], at_index(808, lambda old: torch.full_like(old, 20.0)), rule),
        PlainEdit(*tiny.mlp(plain_default, 23)["up"], at_index(1413, lambda old: old * -3.0)),
    ]
    with model.intervening(edits):
        found = model(tokens, prompt_length=prompt)
    assert torch.allclose(found, logits_under(plain_default, tokens, plain, prompt), rtol=0, atol=1e-4)
