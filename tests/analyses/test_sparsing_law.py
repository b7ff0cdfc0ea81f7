"""The analysis of the sparsing law, small, and its fits on curves whose law is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from analyses.sparsing_law import fits as laws
from analyses.sparsing_law import page, study
from analyses.sparsing_law.models import PolyReLU, Series, untrained
from analyses.sparsing_law.plan import SMALLEST, Shape
from workbench.corpus import Corpus

TOKENS = [40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000, 5_120_000]
PLAN = replace(SMALLEST, points=(600, 1200), measured=200, learned=("polyrelu", "series"), shapes=("32x1",))


def test_a_power_law_is_found_again() -> None:
    values = [0.4 - 0.02 * (d / 1e6) ** -0.5 for d in TOKENS]
    found = laws.fits(TOKENS, values)["power"]
    assert found["numbers"] == pytest.approx({"A0": 0.4, "c": 0.02, "alpha": 0.5}, rel=1e-3)
    assert found["rms"] < 1e-6
    assert found["r2"] == pytest.approx(1)
    assert [one + two for one, two in zip(found["fitted"], found["residuals"], strict=True)] == pytest.approx(values)


def test_a_log_space_power_law_is_found_again() -> None:
    values = [math.exp(-1.5 - 1.2 * (d / 1e6) ** 0.6) + 0.1 for d in TOKENS]
    both = laws.fits(TOKENS, values)
    assert both["log-space power"]["rms"] < 1e-3
    assert both["log-space power"]["numbers"]["A0"] == pytest.approx(0.1, abs=0.01)
    assert both["log-space power"]["aic"] < both["power"]["aic"]


def invented(activation: str, shape: tuple[int, int], weights: int, values: list[float]) -> dict[str, Any]:
    points = [{"tokens": d, "active": value} for d, value in zip(TOKENS, values, strict=True)]
    d_model, layers = shape
    run = {"activation": activation, "d_model": d_model, "layers": layers, "ratio": d_model / layers}
    return run | {"weights": weights, "points": points, "fits": laws.fits(TOKENS, values)}


def test_verdicts_of_runs_that_follow_the_paper_and_of_others() -> None:
    def runs(sign: float, slope: float, by_size: float) -> dict[str, Any]:
        found = {}
        for activation, direction in (("relu", -sign), ("silu", sign)):
            for (d_model, layers), weights in (
                ((96, 3), 300),
                ((64, 6), 300),
                ((128, 2), 300),
                ((64, 2), 100),
                ((128, 4), 700),
            ):
                end = 0.4 + slope * (d_model / layers - 32) / 100 + by_size * (weights - 300) / 400
                values = [end - direction * 0.1 * 0.5 ** (number + 1) for number in range(len(TOKENS))]
                found[f"{activation}-{d_model}x{layers}-0"] = invented(activation, (d_model, layers), weights, values)
        return found

    said = [one["verdict"] for one in laws.verdicts(runs(1, 0.2, 0.0))]
    assert said == ["reproduced"] * 4
    said = [one["verdict"] for one in laws.verdicts(runs(-1, -0.2, 0.2))]
    assert said == ["not reproduced"] * 4
    few = {name: run for name, run in runs(1, 0.2, 0.0).items() if "96x3" in name}
    assert [one["verdict"] for one in laws.verdicts(few)][2:] == ["out of reach"] * 2


def test_learned_activations_by_hand() -> None:
    poly, series = PolyReLU(), Series()
    x = torch.tensor([-2.0, 0.0, 3.0])
    with torch.no_grad():
        poly.weights.copy_(torch.tensor([0.5, 1.0, 2.0, 0.25]))
        assert poly(x).tolist() == pytest.approx([0.5, 0.5, 0.5 + 3 + 2 * 9 + 0.25 * 27])
        expected = [v / (1 + math.exp(-v)) + (0.5 * v - 0.5) / (1 + math.exp(0.5 - 0.5 * v)) for v in x.tolist()]
        assert series(x).tolist() == pytest.approx(expected)


def test_the_whole_of_it_small(tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stories = wb.Corpus.load("stories", limit=40)
    monkeypatch.setattr(Corpus, "load", classmethod(lambda *_: stories))
    found = study.experiment(tmp_path, PLAN)
    assert study.experiment(tmp_path, PLAN)["runs"] == found["runs"], "what was kept is used again"
    assert [run["activation"] for run in found["runs"].values()] == ["relu", "silu", "polyrelu", "series"]
    for run in found["runs"].values():
        assert [point["tokens"] >= wanted for point, wanted in zip(run["points"], PLAN.points, strict=True)] == [
            True
        ] * 2
        assert run["points"][1]["loss"] < run["points"][0]["loss"]
        assert all(0 <= point["low"] <= point["active"] <= point["high"] <= 1 for point in run["points"])
    assert np.isfinite([point["rise"] for point in found["runs"]["relu-32x1-0"]["points"]]).all()
    text = page.write_page(tmp_path, json.loads(json.dumps(found)))
    assert "SiLU" in text.read_text()
    module = untrained("series", Shape(32, 2), PLAN, 0)
    assert {name.rpartition(".")[2] for name, _ in module.named_parameters()} >= {"scales", "shifts"}
