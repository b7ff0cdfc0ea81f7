"""The study of TokFSM, small, against counts written here; and what ships against the reported figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speaker import HEADS, HOW, MACHINE, books, speaker_model  # noqa: F401 (a fixture)

import workbench as wb
from analyses.tokfsm import codes, page, study
from analyses.tokfsm.plan import Plan
from workbench.synthetic import StateCounts, count_codes, force_state, next_states

PLAN = Plan(measured=512, walks=16, pairs=12)


@pytest.fixture(scope="module")
def models(speaker: wb.model.LanguageModel) -> dict[str, wb.model.LanguageModel]:
    return {"plain": speaker, "both": wb.training.fine_tune(speaker, MACHINE, books(), **HOW)}


@pytest.fixture(scope="module")
def results(models: dict[str, wb.model.LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "CONTEXT", 32)
        measured = study.experiment(folder, PLAN, MACHINE, models)
        assert study.experiment(folder, PLAN, MACHINE, models) == measured
    assert "attention + MLP" in page.write_page(folder, measured).read_text()
    return measured


def test_loss_and_accuracy_by_a_loop(results: dict[str, Any], models: dict[str, wb.model.LanguageModel]) -> None:
    for name, model in models.items():
        losses, right = [], []
        for batch in MACHINE.batches(model, 32, 64, PLAN.measured, seed=PLAN.seed + 999):
            for row in batch.tokens:
                logits = model(row[None])[0].log_softmax(-1)
                for place in range(2, len(row)):  # the first digit can't be known
                    losses.append(-float(logits[place - 1, row[place]]))
                    right.append(int(logits[place - 1].argmax()) == int(row[place]))
        language = results["models"][name]["language"]
        assert language["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert language["accuracy"] == pytest.approx(np.mean(right))


def test_state_codes_by_counting(results: dict[str, Any], models: dict[str, wb.model.LanguageModel]) -> None:
    model = models["both"]
    counted = count_codes(model, MACHINE, walks=PLAN.walks, seed=PLAN.seed + 32)
    for row in results["models"]["both"]["state_codes"]["states"]:
        counts = counted.counts[row["hook_point"]][row["code"]]  # [states]
        active = int(counts.sum())
        assert row["precision"] == pytest.approx(int(counts[row["state"]]) / active if active else 0)
        assert row["recall"] == pytest.approx(int(counts[row["state"]]) / int(counted.seen[row["state"]]))
        assert 0 <= row["neuron"]["precision"] <= 1


def test_divergence_of_states_that_share_a_code(models: dict[str, wb.model.LanguageModel]) -> None:
    counts = torch.zeros(40, MACHINE.states, dtype=torch.long)
    group = torch.arange(MACHINE.states) // 2  # states 0 and 1 have code 0 in both heads, 2 and 3 code 1, ...
    counts[group, torch.arange(MACHINE.states)] = 5
    counts[20 + group, torch.arange(MACHINE.states)] = 5
    found = codes.divergences(models["both"], MACHINE, StateCounts({HEADS: counts}, torch.ones(MACHINE.states)))
    edges = [set(row.nonzero()[:, 0].tolist()) for row in MACHINE.follows]

    def divergence(
        a: int, b: int
    ) -> float:  # of two uniform distributions over equally many states: the share not shared
        return 1 - len(edges[a] & edges[b]) / MACHINE.edges

    pairs = [(a, a + 1) for a in range(0, MACHINE.states - 1, 2)]
    assert found[HEADS]["shared"] == pytest.approx(np.mean([divergence(*pair) for pair in pairs]))
    every = [divergence(a, b) for a in range(MACHINE.states) for b in range(a)]
    assert found[HEADS]["random"] == pytest.approx(np.mean(every))
    assert found[HEADS]["pairs"] == 2 * len(pairs)


def test_steering_says_shares(results: dict[str, Any]) -> None:
    steering = results["models"]["both"]["steering"]
    assert steering["chance"] == MACHINE.edges / MACHINE.states
    for kind in ("plain", "forced", "random"):
        assert all(0 <= steering[kind][what] <= 1 for what in ("target", "own", "sampled"))


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    return json.loads((RESULTS / "tokfsm.json").read_text())


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_what_ships_gives_the_reported_loss_and_accuracy(name: str, reported: dict[str, Any]) -> None:
    model, plan = wb.load_model(f"tokfsm-{name}"), Plan()
    assert reported["provenance"]["plan"] == json.loads(json.dumps(asdict(plan)))
    entries = reported["models"][name]
    assert model.is_named(entries["hash"])
    measured = study.language(model, wb.synthetic.TokFSM(), study.sample_of(plan))
    assert measured == pytest.approx(entries["sample"], rel=1e-3)
    # the sample is small beside what is reported, and agrees with it as far as its size allows
    spread = (
        entries["language"]["accuracy"] * (1 - entries["language"]["accuracy"]) / study.sample_of(plan).measured
    ) ** 0.5
    assert measured["accuracy"] == pytest.approx(entries["language"]["accuracy"], abs=4 * spread)
    assert measured["loss"] == pytest.approx(entries["language"]["loss"], rel=0.02)


def test_what_ships_is_steered_as_reported(reported: dict[str, Any]) -> None:
    steering = reported["models"]["both"]["steering"]
    model, machine = wb.load_model("tokfsm-both"), wb.synthetic.TokFSM()
    counted = [count_codes(model, machine, walks=64, written=written) for written in range(2)]
    walk, target = machine.walk(4, 12, 5), 55
    following = next_states(model, machine, walk, force_state(model, machine, counted, target, 12))
    share = float(following[:, machine.follows[target]].sum(1).mean())
    assert share == pytest.approx(steering["forced"]["target"], abs=0.15)
