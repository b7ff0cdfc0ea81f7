"""Interventions under a condition, against plain loops over whole passes."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from pairs import PROMPT, TOKENS, latents

import workbench as wb
from workbench.interventions import Limit, When
from workbench.interventions.saved import from_json, to_json
from workbench.model.edits import EditError

pytestmark = pytest.mark.usefixtures("tiny_cache")
READS, ACTS = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
VECTOR = torch.arange(1.0, 33).sin()


def split(model, scope: str) -> When:
    """A condition that half of the prompt's tokens meet."""
    x = model.capture(TOKENS[:1], [READS])[READS][0] @ VECTOR / VECTOR.square().sum()
    return When.along(READS, VECTOR, above=float(x[:PROMPT].median()), scope=scope)  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["token", "onwards", "prompt"])
def test_a_comparison_remembers_what_the_prompt_met(llama, scope) -> None:
    edit = wb.Steer.along(ACTS, VECTOR, 2.0, positions="generated", when=split(llama, scope))
    both = wb.compare(llama, TOKENS[0, :PROMPT], [edit], 6, stop=False)
    whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([both.baseline.tokens])], 1)
    before = llama(whole)[0, PROMPT - 1 : -1].double().log_softmax(-1)
    with llama.intervening([edit]):
        after = llama(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1].double().log_softmax(-1)
    wanted = (before.exp() * (before - after)).sum(-1).tolist()
    assert both.kl == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) > 1e-6 or scope == "token"
    assert both.edited.tokens == llama.generate(TOKENS[0, :PROMPT], 6, interventions=[edit], stop=False).tokens
    streamed = llama.stream(TOKENS[0, :PROMPT], 6, interventions=[edit], stop=False)
    assert [token.id for token in streamed] == both.edited.tokens


def test_it_reads_a_latent_of_a_trained_dictionary(llama) -> None:
    sae = latents("on the residual stream")
    x = llama.capture(TOKENS, [sae.reads])[sae.reads]
    values = sae.encode(x).dense()
    index = int((values > 0).float().mean((0, 1)).sub(0.5).abs().argmin())
    held = values[..., index] > 0
    assert 0 < int(held.sum()) < held.numel()
    edit = wb.Steer.along(sae.reads, VECTOR, 3.0, when=When(sae.feature(index), above=0.0))
    with llama.intervening([edit]):
        changed = llama.capture(TOKENS, [sae.reads])[sae.reads]
    torch.testing.assert_close(changed, torch.where(held[..., None], x + 3 * VECTOR, x))
    text = to_json(llama, [edit])
    assert json.loads(text)["dictionaries"][0]["name"] == sae.name
    assert from_json(llama, text, [sae]) == [edit]
    with pytest.raises(wb.dictionaries.DictionaryError, match="need the dictionary"):
        from_json(llama, text)


def test_a_bound_is_not_rounded_to_the_type_of_the_model() -> None:
    """In bfloat16 2.999 rounds to 3, which would not be above itself."""
    model = wb.load_model(tiny.build("llama").bfloat16(), tokenizer=tiny.tokenizer())
    for value, bound in ((3.0, {"above": 2.999}), (3.0, {"below": 3.001})):
        clamp = wb.Clamp("neurons.0.post:3", value)
        with model.intervening([clamp]):
            plain = model.capture(TOKENS, [ACTS])[ACTS]
        with model.intervening([clamp, wb.Steer.along(ACTS, VECTOR, 4.0, when=When("neurons.0.post:3", **bound))]):
            assert bool((model.capture(TOKENS, [ACTS])[ACTS] != plain).any(-1).all())


def test_directions_that_float32_can_not_square_or_that_are_several_are_refused(llama) -> None:
    for scale in (1e-30, 1e30):
        when = When.along(READS, (VECTOR * scale).tolist(), below=0.0)
        with pytest.raises(wb.dictionaries.DictionaryError, match="squared length; scale it"):
            llama.generate("a", 1, interventions=[wb.Steer.along(ACTS, VECTOR, when=when)])
    both = wb.directions.Direction({READS: VECTOR, ACTS: VECTOR}, "both")
    with pytest.raises(EditError, match="reads at one hook point"):
        When.along(both, above=0.0)


def test_interventions_listed_before_it_are_what_it_reads(llama) -> None:
    when = When("neurons.0.post:3", above=5.0)
    edits = [wb.Clamp("neurons.0.post:3", 6.0), wb.Clamp("neurons.0.post:3", -1.0, when=when)]
    with llama.intervening(edits):
        assert bool((llama.capture(TOKENS, ["blocks.0.mlp.hook_post"])["blocks.0.mlp.hook_post"][..., 3] == -1).all())
    with llama.intervening(edits[::-1]):
        assert bool((llama.capture(TOKENS, ["blocks.0.mlp.hook_post"])["blocks.0.mlp.hook_post"][..., 3] == 6).all())


def test_what_can_not_be_known_in_time_is_refused(llama) -> None:
    when = When("neurons.1.post:3", above=0.0)
    for late in (wb.Clamp("neurons.0.post:3", 2.0, when=when), wb.Steer.along(READS, VECTOR, when=when)):
        with pytest.raises(EditError, match="before its condition is known"):
            llama.generate("a", 1, interventions=[late])
    sae = latents("on the residual stream")
    edit = wb.Clamp(sae.feature(3), 2.0, when=When(sae.feature(1), above=0.0))
    with llama.spliced({sae.writes: sae}), pytest.raises(EditError, match="before its condition is known"):
        llama.generate("a", 1, interventions=[edit])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scope": "always"}, "scope is"),
        ({"above": None}, "needs above= or below="),
        ({"above": "3"}, "above is a finite number"),
        ({"below": -4.0}, "Nothing is above"),
        ({"limit": 3}, "no setting 'limit'"),
        ({"hook_point": "blocks.0.hook_out"}, "leave out hook_point"),
        ({"feature": None}, "reads a feature"),
    ],
)
def test_a_malformed_condition_is_named(llama, change, sentence) -> None:
    content = json.loads(to_json(llama, [wb.Clamp("neurons.1.post:3", 2.0, when=When("neurons.0.post:3", 1.0))]))
    content["interventions"][0]["when"] |= change
    with pytest.raises(EditError, match=sentence):
        from_json(llama, json.dumps(content))


@pytest.mark.parametrize(("side", "bound"), [("least", torch.Tensor.clamp_min), ("most", torch.Tensor.clamp_max)])
def test_a_limit_adds_what_is_missing(llama, side, bound) -> None:
    plain = llama.capture(TOKENS, [ACTS])[ACTS]
    unit = VECTOR / VECTOR.norm()
    value = plain @ unit
    middle = float(value.median())
    feature = wb.directions.Direction({ACTS: unit}, "d").feature
    for share in (1.0, 0.5):
        with llama.intervening([Limit(feature, middle, side, share)]):
            limited = llama.capture(TOKENS, [ACTS])[ACTS]
        wanted = plain + (share * (bound(value, middle) - value))[..., None] * unit
        torch.testing.assert_close(limited, wanted, rtol=1e-4, atol=1e-5)
