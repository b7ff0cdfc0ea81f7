"""The greater-than study on a tiny model: its measures against loops, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attribution_models import coders

import workbench as wb
from analyses.greater_than import page, study, task


def test_p_difference_counts_digits_above_and_below() -> None:
    probabilities = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    decades = torch.tensor([0, 9, 3, 4, 5, 7])
    found = task.p_difference(probabilities, decades)
    for row, decade, value in zip(probabilities.tolist(), decades.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(sum(row[decade + 1 :]) - sum(row[:decade]), abs=1e-6)


def test_behaviour_is_that_of_single_runs(llama: wb.model.LanguageModel) -> None:
    asked = task.prompts(task.Plan(prompts=9))
    assert asked == task.prompts(task.Plan(prompts=9))
    (mine,) = coders(llama, layers=[1])
    ids = task.digit_ids(llama)
    plain = tiny.build("llama")
    for kind in ("plain", "replaced", "removed"):
        edits = {"plain": [], "replaced": task.replaced(mine), "removed": task.removed(mine)}[kind]
        found = task.behaviour(llama, asked, edits)

        def hook(_m: Any, args: tuple, out: torch.Tensor, kind: str = kind) -> torch.Tensor:
            new = mine.reconstruct(args[0]) if kind == "replaced" else 0 * out
            return out if kind == "plain" else torch.cat([out[:, :1], new[:, 1:]], 1)

        handle = plain.model.layers[1].mlp.register_forward_hook(hook)  # type: ignore[attr-defined]
        values = []
        for text, decade, _ in asked:
            with torch.no_grad():
                row = plain(input_ids=llama.to_tokens(text), use_cache=False).logits[0, -1].softmax(-1)[ids].tolist()
            values.append(sum(row[decade + 1 :]) - sum(row[:decade]))
        handle.remove()
        assert found["p_difference"] == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-6)


def test_the_whole_analysis(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    mine = coders(llama, wb.dictionaries.TopKSkipTranscoder)
    results = study.experiment(llama, mine, task.Plan(prompts=4, graphs=2, top=3), tmp_path)
    graph = wb.attribute(llama, mine, results["carriers"]["graphs"][1]["prompt"], None)
    assert results["carriers"]["graphs"][1]["completeness"] < 1e-3
    assert len(results["carriers"]["latents"]) == 3
    assert set(results["carriers"]["graphs"][0]["shares"]) == set(graph.shares)
    feature = results["carriers"]["on_decade"][0]["feature"]
    assert results["words"]["feature"] == feature
    text = page.write_page(tmp_path, results).read_text()
    assert "0.883" in text
    assert feature in text
    assert json.loads((tmp_path / "digits.json").read_text())["data"][0]["type"] == "heatmap"
