"""Merges against what mergekit 0.1.5 itself wrote (`scripts/make_mergekit_fixtures.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import workbench as wb
from workbench.model.weights import state_of

pytestmark = pytest.mark.usefixtures("tiny_cache")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "mergekit"
RECIPES: dict[str, str] = json.loads((FIXTURES / "recipes.json").read_text())
SEED = 7
"""Of mergekit's random masks."""


@pytest.fixture(autouse=True)
def _beside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "models")


def merge(recipe: str | Path | dict[str, Any], **how: Any) -> wb.surgery.Child:
    return wb.surgery.merge(recipe, **{"device": "cpu", "seed": SEED} | how)


def weights(child: wb.surgery.Child) -> dict[str, Tensor]:
    return state_of(child.model.network.module)


@pytest.mark.parametrize("case", sorted(RECIPES))
def test_a_merge_is_mergekits_to_the_bit(case: str) -> None:
    child, wanted = merge(RECIPES[case]), load_file(FIXTURES / f"{case}.safetensors")
    with safe_open(FIXTURES / f"{case}.safetensors", "pt") as opened:
        sizes = opened.metadata()
    found = weights(child)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    config = child.model.network.config
    assert (config.num_hidden_layers, config.vocab_size) == (int(sizes["layers"]), int(sizes["vocab_size"]))
