"""Dictionaries of normalised activations: edits in the activations' own units, and who refuses them for which reason."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.attribution import AttributionError
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.codes import Change, Rewrite
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.normalising import RULES
from workbench.dictionaries.protocol import Dictionary

CODERS = sorted((k for k in Dictionary.kinds.values() if issubclass(k, SparseCoder)), key=lambda kind: kind.kind)
PLACE = "blocks.1.hook_resid_post"


def example(kind: type[SparseCoder], rule: str) -> Any:
    coder = kind.example()
    chance = torch.Generator().manual_seed(0)
    for name, tensor in coder.state_dict().items():
        tensor.add_(0.1 * torch.rand(tensor.shape, generator=chance) * (0.1 if "threshold" in name else 1))
    coder.normalises = rule
    return coder


def factors(x: Tensor, rule: str) -> Tensor:
    """By the formulas of the paper and of OpenAI's code."""
    if rule == "constant_norm_rescale":
        return x.square().sum(-1, keepdim=True).sqrt() / x.shape[-1] ** 0.5
    centred = x - x.mean(-1, keepdim=True)
    return (centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("kind", CODERS, ids=lambda kind: kind.kind)
def test_edits_are_in_the_activations_own_units(kind: type[SparseCoder], rule: str) -> None:
    coder = example(kind, rule)
    assert coder.rescales != coder.transcodes
    read = 7 * torch.randn(5, coder.d_in, generator=torch.Generator().manual_seed(1)) + 2
    written = read if not coder.transcodes else torch.randn(5, coder.d_out)
    codes = coder.encode(read)
    edited = codes.with_value(3, codes.value_of(3) + 2.0)
    wanted = coder.reconstruct(read, edited) - coder.reconstruct(read, codes)
    factor = factors(read, rule) if coder.rescales else torch.ones(5, 1)
    torch.testing.assert_close(wanted, factor * 2 * coder.direction(3), rtol=1e-4, atol=1e-4)
    for change in (Change(3, lambda value: value + 2), Rewrite(lambda own: own.with_value(3, own.value_of(3) + 2))):
        torch.testing.assert_close(coder.intervene(read, written, [change]), written + wanted, rtol=1e-4, atol=1e-4)
    nothing = coder.reconstruct(torch.zeros(2, coder.d_in))
    assert bool(nothing.isfinite().all())
    with pytest.raises(DictionaryError, match="does not learn here"):
        coder.loss_and_gradients(read)
    plain = kind.example()
    assert "normalises" not in plain.deciding_settings()
    before, coder.normalises = coder.hash, "none"
    assert coder.hash != before


def test_who_needs_a_constant_direction_refuses() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    width = model.network.d_model
    sae: Any = wb.TopKSAE(width, 64, 4, hook_point=PLACE, name="normed")
    sae.normalises = "layer_norm"
    edit = wb.Steer(sae.feature(3), 2.0)
    with pytest.raises(wb.WorkbenchError, match="by the size of each activation"):
        wb.bake(model, [edit])
    with pytest.raises(wb.WorkbenchError, match="has no one direction"):
        wb.surgery.direction_of(model, sae.feature(3))
    coder: Any = wb.dictionaries.TopKTranscoder(width, 64, 4, writes="blocks.1.hook_mlp_out")
    coder.reads, coder.normalises = "blocks.1.mlp.hook_in", "constant_norm_rescale"
    with pytest.raises(AttributionError, match="not linear in what is upstream"):
        wb.attribution.deembed(model, coder, 0)


def test_a_splice_runs_through_the_reconstruction() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    here, after = "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"
    sae: Any = wb.TopKSAE(model.network.d_model, 64, 4, hook_point=here)
    sae.normalises = "layer_norm"
    tokens = torch.arange(1, 8)[None]
    plain = model.capture(tokens, [here])[here]
    with model.spliced({here: sae}):
        seen = model.capture(tokens, [after])[after]
    torch.testing.assert_close(seen, sae.reconstruct(plain), rtol=1e-4, atol=1e-4)
