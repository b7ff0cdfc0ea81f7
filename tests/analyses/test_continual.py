"""The study of learning kinds of text one after another, small."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from analyses.continual.learners import Plan, Trial


@pytest.fixture(scope="module")
def trial() -> Trial:
    chance = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 24, generator=chance)
    angles = torch.arange(5) * 2 * torch.pi / 5
    centres = 6 * torch.stack([angles.cos(), angles.sin()], 1) @ plane  # kinds are neighbours on a circle
    labels = [kind for kind in "abcde" for _ in range(40)]
    x = torch.cat([centre + torch.randn(40, 24, generator=chance) for centre in centres])
    plan = Plan(epochs=4, codebooks=16, n_keys=32, d_key=6, seeds=1)
    return Trial(x, labels, plan, 3)


def test_texts_are_split_within_each_kind_and_none_is_used_twice(trial: Trial) -> None:
    assert {part: Counter(y.tolist()) for part, y in trial.data.y.items()} == {
        "learn": Counter(dict.fromkeys(range(5), 24)),
        "choose": Counter(dict.fromkeys(range(5), 8)),
        "test": Counter(dict.fromkeys(range(5), 8)),
    }
    rows = torch.cat(list(trial.data.x.values()))
    assert len(rows.unique(dim=0)) == 200
    torch.testing.assert_close(trial.data.x["learn"].mean(0), torch.zeros(24), atol=1e-5, rtol=0)


def test_the_bottleneck_keeps_what_a_probe_forgets(trial: Trial) -> None:
    kept = trial.run("key-value bottleneck", 0.1, mixed=False)
    assert len(kept["curve"]) == 5
    assert kept["test"] > 0.9
    assert trial.run("key-value bottleneck", 0.1, mixed=False) == kept
    assert trial.run("linear probe", 0.03, mixed=True)["test"] > 0.9
    assert trial.run("linear probe", 0.3, mixed=False)["test"] < kept["test"] - 0.2


def test_learning_from_codes_is_learning_from_activations(trial: Trial) -> None:
    keys, rows = trial.keys, torch.arange(0, 120, 3)
    x, y = trial.data.x["learn"][rows], trial.data.y["learn"][rows]
    keys.values.zero_()
    keys.learn(x, y, lr=0.2)
    expected = keys.values.clone()
    learn, _ = trial.learner("key-value bottleneck", 0.2)
    learn(rows)
    torch.testing.assert_close(keys.values, expected)
