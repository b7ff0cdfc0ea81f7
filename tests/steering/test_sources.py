"""Directions without examples: against the model's own weights, and against plain passes under them."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from workbench.steering import SteeringError, WordProbability, feature_direction, optimise_direction, token_direction

pytestmark = pytest.mark.usefixtures("tiny_cache")
POINT, LAST = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
PROMPTS = ["the dog", "the cat and a"]


def test_a_feature_s_direction_is_what_steering_it_adds(llama) -> None:
    one = feature_direction(llama, "neurons.1.post:5")
    for edits in ([wb.Steer("neurons.1.post:5", 2.0)], [wb.Steer.along(one, 2.0)]):
        with llama.intervening(edits):
            logits = llama("the dog")
        assert torch.allclose(logits, llama.run(llama.to_tokens("the dog"), llama.bind(edits)), atol=1e-6)
    with llama.intervening([wb.Steer("neurons.1.post:5", 2.0)]):
        wanted = llama("the dog")
    assert torch.allclose(logits, wanted, atol=1e-5)


def test_a_token_s_direction_is_the_one_along_which_its_logit_rises_most(llama) -> None:
    """Where the norm's length is held: the gradient of the logit less the mean of all logits."""
    word = next(text for text in llama.token_texts(range(300, 400)) if len(llama.to_tokens(text, start=False)[0]) == 1)
    token = int(llama.to_tokens(word, start=False)[0, 0])
    gain = llama.network.module.model.norm.weight.detach()
    x = torch.randn(32, requires_grad=True)
    logits = llama.network.module.lm_head.weight.detach() @ (x * gain)
    (slope,) = torch.autograd.grad(logits[token] - logits.mean(), x)
    found = token_direction(llama, word).vectors[LAST]
    assert float(found @ slope / slope.norm()) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(SteeringError, match="tokens"):
        token_direction(llama, "the dog ran home")


def test_an_optimised_direction_is_the_best_of_its_length(llama) -> None:
    """It keeps the length that it was given, and no random vector of that length does as much."""
    found = optimise_direction(llama, PROMPTS, " home", POINT, share=0.5, steps=8)
    norms = [llama.capture(one, [POINT])[POINT][0].norm(dim=-1).mean() for one in PROMPTS]
    length = float(torch.stack(norms).mean()) / 2
    assert float(found.vectors[POINT].norm()) == pytest.approx(length, rel=1e-5)
    effect = WordProbability(PROMPTS, " home")

    def under(vector: torch.Tensor) -> float:
        with llama.intervening([wb.Steer.along(POINT, vector)]):
            return float(torch.tensor(effect(llama)).log().mean())

    chance = torch.Generator().manual_seed(0)
    drawn = [torch.randn(32, generator=chance) for _ in range(20)]
    best = under(found.vectors[POINT])
    assert best > max(under(one * length / one.norm()) for one in drawn)
    assert best > float(torch.tensor(effect(llama)).log().mean())
