"""Law: identity settings change no bit, and outside its positions an intervention changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from pairs import (
    INDEX,
    KINDS,
    LAYER,
    PLACES,
    PROMPT,
    TOKENS,
)
from torch import Tensor

import workbench as wb
from workbench.model.language_model import uninterrupted

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_identity_settings_change_no_bit(pairs, name: str, site: str) -> None:
    model = pairs[name].model
    word = {"gate": "hook_pre", "up": "hook_pre_linear" if name == "llama" else "hook_pre", "post": "hook_post"}[site]
    hook, f = f"blocks.{LAYER}.mlp.{word}", f"neurons.{LAYER}.{site}:{INDEX}"
    plain = model(TOKENS)
    there = model.capture(TOKENS[:1], [hook])[hook][0, :, INDEX].tolist()
    clamps = [wb.Clamp(f, value, positions=[position]) for position, value in enumerate(there)]
    direction = torch.ones(32)
    identities = [[], [wb.Scale(f, 1)], [wb.Scale(f, 1.0, positions="prompt")], [wb.Steer(f, 0.0)], [wb.Steer(f, -0.0)]]
    identities += [[wb.Steer.along("blocks.0.hook_resid_post", direction, 0.0)]]
    for edits in identities:
        with model.intervening(edits):
            assert torch.equal(model(TOKENS), plain), edits
    with model.intervening(clamps):
        assert torch.equal(model(TOKENS[:1]), model_alone(model))


def model_alone(model: wb.model.LanguageModel) -> Tensor:
    """The first row's logits, outside all interventions in force here."""
    with uninterrupted():
        return model(TOKENS[:1])


@pytest.mark.parametrize("rule", ["prompt", "generated", (0, 3, 7)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_outside_its_positions_nothing_changes(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    model = pairs[name].model
    word = {"gate": "hook_pre", "up": "hook_pre_linear" if name == "llama" else "hook_pre", "post": "hook_post"}[site]
    hook = f"blocks.{LAYER}.mlp.{word}"
    plain = model.capture(TOKENS, [hook])[hook]
    with model.intervening([KINDS[kind][0](f"neurons.{LAYER}.{site}:{INDEX}", rule)]):
        edited = model.capture(TOKENS, [hook], prompt_length=PROMPT)[hook]
    inside = torch.tensor([reference.chosen(rule, position, PROMPT) for position in range(TOKENS.shape[1])])
    assert torch.equal(edited[:, ~inside], plain[:, ~inside])
    others = torch.arange(plain.shape[-1]) != INDEX
    assert torch.equal(edited[..., others], plain[..., others])
    expected = KINDS[kind][1](plain[:, inside, INDEX])
    assert torch.equal(edited[:, inside, INDEX], expected)
