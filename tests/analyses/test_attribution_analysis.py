"""`analyses/greater_than.py` on a tiny model: what it measures, against loops, and that its page is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attribution_models import coders

import workbench as wb

ANALYSES = Path(__file__).parents[2] / "analyses"


@pytest.fixture
def analysis(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    for name in ("greater_than", "greater_than_page"):
        sys.modules.pop(name, None)
    import greater_than  # type: ignore[import-not-found]

    return greater_than


def test_p_difference_counts_digits_above_and_below(analysis: Any) -> None:
    probabilities = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    decades = torch.tensor([0, 9, 3, 4, 5, 7])
    found = analysis.p_difference(probabilities, decades)
    for row, decade, value in zip(probabilities.tolist(), decades.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(sum(row[decade + 1 :]) - sum(row[:decade]), abs=1e-6)


def test_behaviour_is_that_of_single_runs(analysis: Any, llama: wb.model.LanguageModel) -> None:
    asked = analysis.prompts(analysis.Plan(prompts=9))
    assert asked == analysis.prompts(analysis.Plan(prompts=9))
    (mine,) = coders(llama, layers=[1])
    ids = analysis.digit_ids(llama)
    plain = tiny.build("llama")
    for kind in ("plain", "replaced", "removed"):
        edits = {"plain": [], "replaced": analysis.replaced(mine), "removed": analysis.removed(mine)}[kind]
        found = analysis.behaviour(llama, asked, edits)

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


def test_the_whole_analysis(analysis: Any, llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    mine = coders(llama, wb.dictionaries.TopKSkipTranscoder)
    results = analysis.experiment(llama, mine, analysis.Plan(prompts=4, graphs=2, top=3), tmp_path)
    graph = wb.attribute(llama, mine, results["carriers"]["graphs"][1]["prompt"], None)
    assert results["carriers"]["graphs"][1]["completeness"] < 1e-3
    assert len(results["carriers"]["latents"]) == 3
    assert set(results["carriers"]["graphs"][0]["shares"]) == set(graph.shares)
    feature = results["carriers"]["on_decade"][0]["feature"]
    assert results["words"]["feature"] == feature
    page = analysis.write_page(tmp_path, results, analysis.PUBLISHED).read_text()
    assert "0.883" in page
    assert feature in page
    assert json.loads((tmp_path / "digits.json").read_text())["data"][0]["type"] == "heatmap"
