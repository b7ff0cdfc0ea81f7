"""An edit changes what a model computes, or is refused: over the hook points of the zoo.

The suite runs a seeded sample of the architectures; `make laws` runs them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import zoo
from torch import Tensor

import workbench as wb
from workbench.model.edits import Edit, EditError

SAMPLE = 5
TOKENS = torch.arange(9)[None] * 37 % tiny.VOCAB


def shaken(value: Tensor) -> Tensor:
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    return value + (0.1 + value.abs().mean()) * noise


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, without=zoo.UNOPENED))
def test_every_edit_acts_or_is_refused(name: str, tiny_cache: Path) -> None:
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    base, acting = model.run(TOKENS), []
    for point in {point.key: point for point in model.hook_points.values()}.values():
        if point.positional and not point.refusal:
            edited = model.run(TOKENS, [Edit(point.name, shaken)])
            assert not torch.equal(edited, base), f"an edit at {point.name} changes nothing"
            acting.append(point.name)
        else:
            with pytest.raises(EditError, match=f"^{point.name} can be read but not edited: "):
                model.run(TOKENS, [Edit(point.name, shaken)])
    assert {f"blocks.{layer}.hook_resid_post" for layer in range(model.network.n_layers)} <= {
        known for known, point in model.hook_points.items() if not point.refusal
    }
    assert len(acting) > 10 * model.network.n_layers


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, without=zoo.UNOPENED)[:2])
def test_edits_act_beside_one_that_only_the_bridge_has(name: str, tiny_cache: Path) -> None:
    """A run with one such hook point goes through the bridge, where every other edit acts as well."""
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    points = {p.key: p for p in model.hook_points.values() if p.positional and not p.refusal}
    bridged = next(p for p in points.values() if p.module is None)
    base = model.run(TOKENS, [Edit(bridged.name, shaken)])
    for point in points.values():
        if point.module is not None:
            edited = model.run(TOKENS, [Edit(bridged.name, shaken), Edit(point.name, shaken)])
            assert not torch.equal(edited, base), f"an edit at {point.name} beside {bridged.name} changes nothing"
