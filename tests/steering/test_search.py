"""Searching for a direction: what a trial states is what it does, the front is that of a loop, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.steering import Divergence, PatternShare, Perplexity, Projection, Repetition, WordProbability
from workbench.steering import search_direction as search

pytestmark = pytest.mark.usefixtures("tiny_cache")
WORDS = ("dog", "cat", "man", "girl", "king", "bird")
POSITIVES = [f"the {word} ran home" for word in WORDS]
NEGATIVES = [f"a {word} ate it" for word in WORDS]
PROMPTS, TEXTS = ["the dog", "the cat and a"], ["the bird sang to the king", "a man"]
EFFECT, COST = WordProbability(PROMPTS, " home"), Divergence(TEXTS)
POINTS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def made(llama, **how):
    return search(llama, POSITIVES, NEGATIVES, EFFECT, COST, **{"at": POINTS, "trials": 12, "progress": False} | how)


def test_measures_are_those_of_plain_passes(llama) -> None:
    edit = wb.Steer.along(POINTS[0], torch.arange(1.0, 33).sin(), 2.0)
    rows = [llama.to_tokens(text) for text in TEXTS]
    plain = [llama(row)[0].double().log_softmax(-1) for row in rows]
    with llama.intervening([edit]):
        steered = [llama(row)[0].double().log_softmax(-1) for row in rows]
        ends = llama.to_tokens(" home", start=False)[0]
        start = llama.to_tokens(PROMPTS[1])[0]
        behind = llama(torch.cat([start, ends])[None])[0].double().softmax(-1)
        wanted = torch.stack([behind[len(start) - 1 + n, token] for n, token in enumerate(ends)]).prod()
        assert EFFECT(llama)[1] == pytest.approx(float(wanted), rel=1e-4)
        kl = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(plain, steered, strict=True)]
        assert COST(llama) == pytest.approx(kl, rel=1e-3)
        losses = [-float(q[:-1].gather(1, row[0, 1:, None]).mean()) for q, row in zip(steered, rows, strict=True)]
        assert Perplexity(TEXTS)(llama) == pytest.approx(losses, rel=1e-4)
        x = llama.capture(PROMPTS[0], [POINTS[0]])[POINTS[0]][0, -1]
        assert Projection(PROMPTS, POINTS[0], [2.0] + [0.0] * 31)(llama)[0] == pytest.approx(float(x[0]), rel=1e-4)
        texts = [llama.generate(prompt, 6) for prompt in PROMPTS]
        assert PatternShare(PROMPTS, "[aeiou]", 6)(llama) == [float(any(x in t.text for x in "aeiou")) for t in texts]
        assert Repetition(PROMPTS, 6)(llama) == [wb.evaluation.repetition(t.tokens) for t in texts]


def test_a_trial_is_what_it_states_and_the_front_is_that_of_a_loop(llama) -> None:
    found = made(llama, methods=("difference", "ridge"), acts=("add", "ablate"))
    assert len(found.trials) == 12
    assert found.complete
    assert {one.act for one in found.trials} == {"add", "ablate"}
    for one in found.trials[-2:]:
        with llama.intervening(found.edits(one)):
            assert sum(EFFECT(llama)) / 2 == pytest.approx(one.effect, rel=1e-6)
            assert sum(COST(llama)) / 2 == pytest.approx(one.cost, rel=1e-5)
        low, high = one.effect_interval
        assert low <= one.effect <= high
        natural = found.direction(one).strength
        assert one.amount == pytest.approx(one.strength * natural)
    every = found.trials
    beaten = [a for a in every if any(b.effect > a.effect and b.cost <= a.cost for b in every)]
    beaten += [a for a in every if any(b.effect >= a.effect and b.cost < a.cost for b in every)]
    best = {(one.cost, one.effect) for one in every if one not in beaten}
    assert [(one.cost, one.effect) for one in found.front] == sorted(best)
    most = sorted(one.cost for one in found.trials)[5]
    assert found.best(most).effect == max(one.effect for one in found.trials if one.cost <= most)
    with pytest.raises(wb.steering.SteeringError, match="No trial costs"):
        found.best(-1.0)
    assert len(found.to_pandas()) == 12
    assert len(found.figure().data) == 2


def test_a_stopped_search_goes_on_to_the_same_end(llama, tmp_path: Path) -> None:
    whole, asked = made(llama), iter([False] * 5 + [True] * 99)
    part = made(llama, checkpoint=tmp_path / "search.json", cancel=lambda: next(asked))
    assert part.trials == whole.trials[:5]
    assert not part.complete
    assert made(llama, checkpoint=tmp_path / "search.json").trials == whole.trials
    for change in ({"seed": 1}, {"strengths": (0.5, 1.0)}, {"methods": ("ridge",)}):
        with pytest.raises(wb.steering.SteeringError, match="another search"):
            made(llama, checkpoint=tmp_path / "search.json", **change)
    content = json.loads((tmp_path / "search.json").read_text())
    content["trials"][0]["how"] = "pca last"
    (tmp_path / "search.json").write_text(json.dumps(content))
    with pytest.raises(wb.steering.SteeringError, match="another search"):
        made(llama, checkpoint=tmp_path / "search.json")
    with pytest.raises(wb.steering.SteeringError, match="can't tell functions apart"):
        search(llama, POSITIVES, NEGATIVES, lambda _: [1.0], COST, checkpoint=tmp_path / "other.json")


def test_a_checkpoint_knows_what_was_in_force(llama, tmp_path: Path) -> None:
    path, beside = tmp_path / "search.json", wb.Steer.along(POINTS[0], torch.arange(1.0, 33).sin(), 4.0)
    how = {"checkpoint": path, "trials": 2}
    made(llama, **how)
    with llama.intervening([beside]):
        with pytest.raises(wb.steering.SteeringError, match="another search"):
            made(llama, **how)
        path.unlink()
        under = made(llama, **how)
        assert made(llama, **how).trials == under.trials
    with pytest.raises(wb.steering.SteeringError, match="another search"):
        made(llama, **how)
    (trial, *_) = under.trials
    spliced = llama.spliced({trial.hook_point: under.direction(trial).dictionary})
    with spliced, pytest.raises(wb.steering.SteeringError, match="can't tell what else is in force"):
        made(llama, **how)


@pytest.mark.parametrize(
    "change",
    [{"strength": 7.0}, {"hook_point": "blocks.0.hook_mlp_out"}, {"act": "ablate"}, {"cost": None}],
)
def test_a_trial_that_the_search_does_not_make_is_refused(llama, tmp_path: Path, change) -> None:
    path = tmp_path / "search.json"
    made(llama, checkpoint=path, trials=1)
    content = json.loads(path.read_text())
    content["trials"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(wb.steering.SteeringError, match="another search"):
        made(llama, checkpoint=path, trials=2)


def test_ablations_are_each_tried_once(llama) -> None:
    """The refusal recipe: what is ablated is the one with the most effect at a bounded cost."""
    found = made(llama, acts=("ablate",), methods=("difference", "ridge"))
    assert len({(one.hook_point, one.method) for one in found.trials}) == len(found.trials) == 4
    (edit,) = found.edits(found.best(1e9))
    baked = wb.bake(llama, [edit]).model
    assert sum(EFFECT(baked)) / 2 == pytest.approx(found.best(1e9).effect, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"strengths": (2.0, 1.0)}, "two rising numbers"),
        ({"at": "blocks.0.mlp.hook_post", "acts": ("ablate",)}, "not as wide as the residual stream"),
        ({"trials": 0}, "trials"),
        ({"acts": ("multiply",)}, "acts"),
    ],
)
def test_what_can_not_be_searched_is_refused(llama, change, sentence) -> None:
    with pytest.raises(wb.steering.SteeringError, match=sentence):
        made(llama, **change)
