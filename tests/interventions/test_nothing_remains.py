"""Law: an intervention belongs to a call; nothing of it remains after the call, or after an exception."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from pairs import (
    TOKENS,
    close,
)
from reference import greedy, logits_under
from torch import Tensor

import workbench as wb
from workbench.model.edits import Edit

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


def test_nothing_remains_after_the_block_or_an_exception(pairs) -> None:
    model = pairs["llama"].model
    edits = [wb.Clamp("neurons.0.gate:3", 50.0), wb.Steer.along("blocks.1.ln1.hook_normalized", torch.ones(32), 3.0)]
    plain = model(TOKENS)
    with model.intervening(edits):
        assert not close(model(TOKENS), plain)
    assert torch.equal(model(TOKENS), plain)
    with pytest.raises(ZeroDivisionError), model.intervening(edits):
        1 / model(TOKENS).shape.index(len(TOKENS))  # the batch is the first axis, 0
    assert torch.equal(model(TOKENS), plain)


class Exploding:
    """An intervention whose edit fails in the middle of a forward pass."""

    def bind(self, model: Any, plan: object) -> list[Edit]:
        def explode(value: Tensor) -> Tensor:
            raise ZeroDivisionError

        return [Edit("blocks.1.mlp.hook_post", explode)]


def test_nothing_remains_after_an_edit_fails_inside_the_model(pairs) -> None:
    model = pairs["llama"].model
    plain, text = model(TOKENS), model.generate(TOKENS[0], 4).tokens
    edits = [wb.Clamp("neurons.0.gate:3", 50.0), Exploding()]
    for fail in (
        lambda: model.generate(TOKENS[0], 4, interventions=edits),
        lambda: list(model.stream(TOKENS[0], 4, interventions=edits)),
        lambda: wb.compare(model, "The dog", edits, 4),  # type: ignore[arg-type]
    ):
        with pytest.raises(ZeroDivisionError):
            fail()
    with pytest.raises(ZeroDivisionError), model.intervening(edits):
        model(TOKENS)
    assert torch.equal(model(TOKENS), plain)
    assert model.generate(TOKENS[0], 4).tokens == text


def test_refused_edits_leave_nothing_in_force(pairs) -> None:
    model = pairs["llama"].model
    plain = model(TOKENS)
    with (
        pytest.raises(wb.dictionaries.FeatureError),
        model.intervening([wb.Clamp("neurons.0.gate:3", 50.0), wb.Clamp("neurons.9.gate:0", 1.0)]),
    ):
        pytest.fail("the block was entered")
    assert torch.equal(model(TOKENS), plain)


def test_blocks_nest_and_inner_ones_come_after(pairs) -> None:
    pair = pairs["llama"]
    model, f = pair.model, "neurons.1.gate:7"
    with model.intervening([wb.Clamp(f, 2.0)]):
        outside = model(TOKENS)
        with model.intervening([wb.Scale(f, 3.0)]):
            both = model(TOKENS)
        again = model(TOKENS)
        generated = model.generate(TOKENS[0], 5, interventions=[wb.Scale(f, 3.0)], stop=False).tokens
    six = [pair.edit("gate", lambda old: torch.full_like(old, 6.0), "all")]
    assert close(both, logits_under(pair.plain, TOKENS, six))
    assert torch.equal(outside, again)
    assert not close(outside, both)
    assert generated == greedy(pair.plain, TOKENS[:1], 5, six)[0]


def test_a_block_belongs_to_one_model(pairs) -> None:
    """Interventions on one model leave another alone, even one with the same weights."""
    model, other = pairs["llama"].model, wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    plain = other(TOKENS)
    with model.intervening([wb.Clamp("neurons.1.gate:7", 50.0)]):
        assert torch.equal(other(TOKENS), plain)
        assert not close(model(TOKENS), plain)
