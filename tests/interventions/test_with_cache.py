"""Law: generation with the key-value cache and full passes agree under interventions."""

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
    TOKENS,
)
from reference import PlainEdit, at_index, greedy, logits_under

import workbench as wb

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (0, 3, 7)], ids=str)
@pytest.mark.parametrize("kind", ["clamp", "scale", "steer"])
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_cached_generation_equals_full_passes(pairs, name: str, site: str, kind: str, rule: Any) -> None:
    pair = pairs[name]
    make, change = KINDS[kind]
    expected, logprobs = greedy(pair.plain, TOKENS[:1, :PROMPT], 6, [pair.edit(site, change, rule)])
    edits = [make(f"neurons.{LAYER}.{site}:{INDEX}", rule)]
    written = pair.model.generate(TOKENS[0, :PROMPT], 6, interventions=edits, stop=False)
    assert written.tokens == expected
    assert written.logprobs == pytest.approx(logprobs, abs=1e-4)
    whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([expected])], 1)
    with pair.model.intervening(edits):
        uncached = pair.model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == expected


BRIDGE_ONLY = [
    ("llama", "blocks.1.ln1.hook_normalized"),
    ("llama", "blocks.1.attn.hook_rot_q"),
    ("llama", "blocks.1.attn.hook_rot_k"),
    ("mistral", "blocks.1.attn.hook_rot_q"),
    ("qwen2", "blocks.1.ln2.hook_scale"),
    ("gpt2", "blocks.1.attn.hook_q"),
    ("neox", "blocks.1.attn.hook_v"),
]


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (2, 8)], ids=str)
@pytest.mark.parametrize(("name", "hook"), BRIDGE_ONLY)
def test_bridge_edits_agree_with_and_without_cache(zoo, name: str, hook: str, rule: Any) -> None:
    model = zoo[name]
    point = model.hook_points[hook]
    assert point.module is None
    direction = torch.randn(point.width, generator=torch.Generator().manual_seed(9))
    edits = [wb.Steer.along(hook, direction, 0.7, positions=rule)]
    written = model.generate(TOKENS[0, :PROMPT], 8, interventions=edits, stop=False).tokens
    with model.intervening(edits):
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        uncached = model(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
    assert uncached.argmax(-1).tolist() == written
    # the same vector added to every key shifts all scores of a query alike, which the softmax does not see
    without_effect = hook.endswith("hook_rot_k") and rule == "all"
    assert torch.allclose(uncached, model(whole)[0, PROMPT - 1 : -1], atol=1e-3) == without_effect


@pytest.mark.real
@pytest.mark.parametrize("rule", ["all", "prompt", "generated"])
def test_default_model_clamped_writes_the_same_with_and_without_cache(model, plain_default, rule: Any) -> None:
    tokens = model.to_tokens("My favourite animal is a")
    edits = [wb.Clamp("neurons.29.gate:808", 40.0, positions=rule), wb.Clamp("neurons.20.post:3", 9.0, positions=rule)]
    written = model.generate(tokens, 8, interventions=edits, stop=False)
    plain = [
        PlainEdit(*tiny.mlp(plain_default, 29)["gate"], at_index(808, lambda old: torch.full_like(old, 40.0)), rule),
        PlainEdit(*tiny.mlp(plain_default, 20)["post"], at_index(3, lambda old: torch.full_like(old, 9.0)), rule),
    ]
    whole = torch.cat([tokens, torch.tensor([written.tokens])], 1)
    prompt = tokens.shape[1]
    uncached = logits_under(plain_default, whole, plain, prompt)[0, prompt - 1 : -1].log_softmax(-1)
    assert uncached.argmax(-1).tolist() == written.tokens
    assert written.logprobs == pytest.approx(uncached.amax(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize(("name", "hook"), BRIDGE_ONLY[-2:])
def test_a_model_first_used_for_writing_runs_under_gradients_later(zoo, name: str, hook: str) -> None:
    """Law: a result does not depend on the order of calls, of which the first runs in inference mode here."""
    fresh = wb.load_model(tiny.build(name), tokenizer=tiny.tokenizer())
    edits = [wb.Steer.along(hook, torch.ones(fresh.hook_points[hook].width), 0.7)]
    fresh.generate(TOKENS[0, :PROMPT], 2, interventions=edits, stop=False)
    with torch.enable_grad(), fresh.intervening(edits):
        late = fresh(TOKENS[:1])
    with zoo[name].intervening(edits):
        assert torch.equal(late, zoo[name](TOKENS[:1]))
