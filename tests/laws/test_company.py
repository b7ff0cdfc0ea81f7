"""Alone as in company: a text does not depend on the rows beside it, their order, another edit, or earlier calls.

The suite runs a seeded sample of the architectures; `make laws` runs them all.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo

import workbench as wb

pytestmark = pytest.mark.usefixtures("tiny_cache")

ALWAYS = ("llama",)
SAMPLE = 2
PROMPTS = ["The dog", "What is your favourite animal? My favourite", "a cat and a"]
SETTINGS = {
    "greedy": wb.model.Sampling(),
    "top_p of a cool model": wb.model.Sampling(0.3, top_p=0.9, seed=4),
    "top_p of a hot model": wb.model.Sampling(3.0, top_p=0.97, seed=4),
    "top_k": wb.model.Sampling(1.0, top_k=7, seed=4),
    "all tokens": wb.model.Sampling(1.0, seed=4),
    "penalty": wb.model.Sampling(1.0, seed=4, repetition_penalty=1.3),
}


@functools.lru_cache(1)
def opened(name: str) -> wb.model.LanguageModel:
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


def alone(model: wb.model.LanguageModel, row: int, sampling: Any, **how: Any) -> Any:
    """The continuation of one prompt; row i draws with seed + i."""
    from dataclasses import replace

    return model.generate(PROMPTS[row], 8, sampling=replace(sampling, seed=sampling.seed + row), stop=False, **how)


def same(one: Any, other: Any, what: str) -> None:
    """Equal tokens up to a tie, and log-probabilities."""
    assert one.tokens == other.tokens, what
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4), what


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, ALWAYS, zoo.UNOPENED))
def test_a_text_is_the_same_alone_and_in_company(name: str, tiny_cache: Path) -> None:
    model = opened(name)
    for words, sampling in SETTINGS.items():
        together = model.generate_batch(PROMPTS, 8, sampling=sampling, stop=False)
        for row, one in enumerate(together):
            same(one, alone(model, row, sampling), f"{words}, row {row}")


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, ALWAYS, zoo.UNOPENED))
@pytest.mark.parametrize("positions", ["prompt", "generated", (1,)])
def test_an_edit_acts_at_its_positions_in_every_company(name: str, positions: Any, tiny_cache: Path) -> None:
    model = opened(name)
    width = model.network.d_model
    edit = wb.Steer.along("blocks.1.hook_resid_post", torch.arange(1.0, width + 1).sin(), 3.0, positions=positions)
    together = model.generate_batch(PROMPTS, 8, interventions=[edit], stop=False)
    for row, one in enumerate(together):
        same(one, alone(model, row, wb.model.Sampling(), interventions=[edit]), f"row {row}")
    back = model.generate_batch(PROMPTS[::-1], 8, interventions=[edit], stop=False)[::-1]
    for row, (one, other) in enumerate(zip(together, back, strict=True)):
        same(one, other, f"row {row} in the other order")


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_the_sides_of_a_comparison_are_those_written_alone(sampling: Any, tiny_cache: Path) -> None:
    model = opened("llama")
    edits = [wb.Scale("neurons.1.post:5", 4.0), wb.Steer.along("blocks.1.hook_resid_post", torch.ones(32), 0.5)]
    plain = alone(model, 0, sampling)
    by_strength = [wb.compare(model, PROMPTS[0], [edit], 8, sampling=sampling, stop=False) for edit in edits]
    for edit, both in zip(edits, by_strength, strict=True):
        same(both.baseline, plain, "the plain side")
        same(both.edited, alone(model, 0, sampling, interventions=[edit]), "the edited side")
    twice = wb.compare(model, PROMPTS[0], [edits[0]], 8, sampling=sampling, stop=False, control=True)
    same(twice.baseline, plain, "the plain side beside a control")
    assert twice.kl == pytest.approx(by_strength[0].kl, abs=1e-5)
    assert twice.edited_perplexity == pytest.approx(by_strength[0].edited_perplexity, rel=1e-4)


def test_the_kl_of_a_comparison_is_that_of_whole_passes(tiny_cache: Path) -> None:
    model = opened("llama")
    edit = wb.Scale("neurons.1.post:5", 4.0)
    both = wb.compare(model, PROMPTS[1], [edit], 8, stop=False)
    ids = model.to_tokens(PROMPTS[1])
    whole = torch.cat([ids, torch.tensor([both.baseline.tokens])], 1)
    at = slice(ids.shape[1] - 1, -1)
    before = model(whole)[0, at].double().log_softmax(-1)
    with model.intervening([edit]):
        after = model(whole)[0, at].double().log_softmax(-1)
    wanted = (before.exp() * (before - after)).sum(-1).tolist()
    assert both.kl == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_16_bits_are_in_float32(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(2, 5, 997, generator=torch.Generator().manual_seed(0))).to(dtype)
    other, targets = logits.roll(1, -1), torch.arange(10).view(2, 5)
    exact, same = (one.double().log_softmax(-1) for one in (logits, other))
    wanted = -exact.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(wb.evaluation.cross_entropy(logits, targets).double(), wanted, rtol=1e-5, atol=1e-5)
    wanted = (exact.exp() * (exact - same)).sum(-1)
    torch.testing.assert_close(wb.evaluation.kl_divergence(logits, other).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_edit_that_changes_nothing_costs_nothing_in_16_bits(dtype: torch.dtype, tiny_cache: Path) -> None:
    model = wb.load_model(tiny.build("llama").to(dtype), tokenizer=tiny.tokenizer())
    both = wb.compare(model, PROMPTS[1], [wb.Scale("neurons.1.post:5", 1.0)], 12, stop=False)
    assert max(both.kl) == 0.0
    assert both.edited_perplexity == both.baseline_perplexity
    ids = torch.cat([model.to_tokens(PROMPTS[1]), torch.tensor([both.baseline.tokens])], 1)
    logits = model(ids)[0, -13:-1].double().log_softmax(-1)
    wanted = logits.gather(1, torch.tensor(both.baseline.tokens)[:, None])[:, 0].tolist()
    assert model.generate(PROMPTS[1], 12, stop=False).logprobs == pytest.approx(wanted, abs=0.05)
