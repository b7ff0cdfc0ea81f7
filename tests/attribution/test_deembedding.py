"""De-embeddings against products of weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attribution_models import coders
from torch import Tensor

import workbench as wb


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_deembeddings_are_products_of_weights(zoo: Any, name: str) -> None:
    """Against one token fed through the plain modules, without their biases and scales."""
    model = zoo[name]
    layer = model.network.n_layers - 1
    (mine,) = coders(model, layers=[layer])
    found = wb.attribution.deembed(model, mine, 7, top=5, heads=3)
    network = model.network
    table = network.module.get_input_embeddings().weight.detach()

    def normed(point: str, x: Tensor) -> Tensor:
        gain, _, centres = network.norm_weights(point)
        return (x - x.mean(-1, keepdim=True) if centres else x) * gain

    direct = normed(f"blocks.{layer}.ln2.hook_out", table) @ mine.W_enc[:, 7]
    best = direct.topk(5)
    assert found.drives.ids == best.indices.tolist()
    assert found.drives.scores == pytest.approx(best.values.tolist(), rel=1e-4)
    assert found.opposes.ids == (-direct).topk(5).indices.tolist()
    assert found.opposes.scores == sorted(found.opposes.scores)
    spreads = {}
    for below in range(layer + (name != "neox")):
        value, _, out, _ = network.attention_weights(below)
        x = normed(f"blocks.{below}.ln1.hook_out", table)
        for head in range(len(out)):
            written = x @ value[head * len(value) // len(out)] @ out[head]
            scores = normed(f"blocks.{layer}.ln2.hook_out", written) @ mine.W_enc[:, 7]
            spreads[below, head] = scores
    order = sorted(spreads, key=lambda place: -float(spreads[place].std()))
    assert [(one.layer, one.head) for one in found.heads] == order[:3]
    for one in found.heads:
        scores = spreads[one.layer, one.head]
        assert one.strength == pytest.approx(float(scores.std()), rel=1e-3)
        assert one.drives.ids == scores.topk(5).indices.tolist()
    gain, centres = network.final_norm()
    row = mine.W_dec[7]
    logits = network.module.get_output_embeddings().weight.detach() @ ((row - row.mean() if centres else row) * gain)
    assert found.promotes.ids == logits.topk(5).indices.tolist()
    assert found.promotes.scores == pytest.approx((logits - logits.mean()).topk(5).values.tolist(), rel=1e-4)
    json.dumps(found.to_dict())
    with pytest.raises(wb.dictionaries.FeatureError):
        wb.attribution.deembed(model, mine, 24)
    for wrong in ({"top": -1}, {"top": 2.5}, {"heads": -1}, {"heads": 1.5}):
        with pytest.raises(ValueError, match="is a whole number from"):
            wb.attribution.deembed(model, mine, 7, **wrong)
