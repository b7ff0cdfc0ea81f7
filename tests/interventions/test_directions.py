"""Steering along directions, at every kind of hook point, against plain hooks and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import tiny
import torch
from pairs import (
    LAYER,
    PROMPT,
    RULES,
    TOKENS,
    close,
)
from reference import PlainEdit, logits_under
from torch import Tensor

import workbench as wb

pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited")  # TransformerLens on its norms


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_steering_along_a_direction_equals_a_plain_hook(pairs, name: str, rule: Any) -> None:
    pair = pairs[name]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    blocks = pair.plain.get_decoder()
    block = (blocks.h if name == "gpt2" else blocks.layers)[LAYER]
    expected = logits_under(
        pair.plain, TOKENS, [PlainEdit(block, "out", lambda vector: vector + 0.8 * direction, rule)], PROMPT
    )
    steer = wb.Steer.along(f"blocks.{LAYER}.hook_resid_post", direction, 0.8, positions=rule)
    assert close(pair.logits([steer]), expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("alias", ["attn.hook_z", "attn.o.hook_in"])
def test_steering_one_head_equals_a_plain_hook(pairs, alias: str, rule: Any) -> None:
    pair = pairs["llama"]
    direction = torch.zeros(4, 8)
    direction[2] = torch.arange(8.0)  # head 2 only
    projection = pair.plain.model.layers[LAYER].self_attn.o_proj

    def change(vector: Tensor) -> Tensor:  # [batch, 32], head 2 at 16 to 23
        vector = vector.clone()
        vector[:, 16:24] += 0.5 * torch.arange(8.0)
        return vector

    expected = logits_under(pair.plain, TOKENS, [PlainEdit(projection, "in", change, rule)], PROMPT)
    steer = wb.Steer.along(f"blocks.{LAYER}.{alias}", direction, 0.5, positions=rule)
    assert close(pair.logits([steer]), expected)


def test_normalised_residual_and_its_closed_form(pairs) -> None:
    """Adding v behind the division by the norm adds gain * v to the norm's output."""
    pair = pairs["llama"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    norm = pair.plain.model.layers[0].input_layernorm
    plain = [PlainEdit(norm, "out", lambda vector: vector + norm.weight.detach() * direction, "prompt")]
    expected = logits_under(pair.plain, TOKENS, plain, PROMPT)
    steer = wb.Steer.along("blocks.0.ln1.hook_normalized", direction, positions="prompt")
    assert torch.allclose(pair.logits([steer]), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, logits_under(pair.plain, TOKENS), rtol=0, atol=1e-2)


def test_rotated_queries_against_queries_rotated_by_hand(pairs) -> None:
    """Adding v to the rotated query at a position adds v, rotated back, to the query before."""
    pair = pairs["llama"]
    direction = torch.randn(4, 8, generator=torch.Generator().manual_seed(6))
    position = 4
    angles = position * 10000.0 ** -(torch.arange(4) / 4)  # pairs of dimensions (i, i + 4) turn together
    cos, sin = angles.cos(), angles.sin()
    first, second = direction[:, :4], direction[:, 4:]
    back = torch.cat([first * cos + second * sin, second * cos - first * sin], -1)
    queries = pair.plain.model.layers[1].self_attn.q_proj
    plain = [PlainEdit(queries, "out", lambda vector: vector + back.flatten(), (position,))]
    expected = logits_under(pair.plain, TOKENS, plain)
    steer = wb.Steer.along("blocks.1.attn.hook_rot_q", direction, positions=[position])
    found = pair.logits([steer])
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, logits_under(pair.plain, TOKENS), rtol=0, atol=1e-2)


def test_queries_that_the_plain_model_computes_fused(pairs) -> None:
    """GPT-2 has one projection for queries, keys and values; only the bridge shows them apart."""
    pair = pairs["gpt2"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(7))
    fused = pair.plain.transformer.h[1].attn.c_attn
    padded = torch.cat([direction, torch.zeros(64)])
    expected = logits_under(pair.plain, TOKENS, [PlainEdit(fused, "out", lambda vector: vector + padded, (2, 6))])
    steer = wb.Steer.along("blocks.1.attn.hook_q", direction, positions=[2, 6])
    assert torch.allclose(pair.logits([steer]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_steering_the_position_embedding_is_steering_the_token_embedding(pairs, rule: Any) -> None:
    """GPT-2 adds the two; it embeds the positions once for all rows, which must not show."""
    pair = pairs["gpt2"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(10))
    found = [pair.logits([wb.Steer.along(n, direction, positions=rule)]) for n in ("hook_pos_embed", "hook_embed")]
    assert torch.allclose(*found, rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], pair.model(TOKENS), atol=1e-2)


def test_plain_and_bridge_edits_mix(pairs) -> None:
    pair = pairs["llama"]
    direction = torch.ones(32)
    norm = pair.plain.model.layers[0].input_layernorm
    plain = [
        pair.edit("gate", lambda old: torch.full_like(old, 3.0), "all"),
        PlainEdit(norm, "out", lambda vector: vector + 0.3 * norm.weight.detach()),
    ]
    edits = [wb.Clamp("neurons.1.gate:7", 3.0), wb.Steer.along("blocks.0.ln1.hook_normalized", direction, 0.3)]
    assert torch.allclose(pair.logits(edits), logits_under(pair.plain, TOKENS, plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.1.hook_resid_post", "blocks.1.hook_out"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("blocks.1.mlp.hook_pre", "blocks.1.mlp.gate.hook_out"),
        ("blocks.1.attn.hook_v", "blocks.1.attn.v.hook_out"),
        ("hook_embed", "embed.hook_out"),
        ("hook_unembed", "unembed.hook_out"),
    ],
)
def test_two_names_of_one_place(pairs, one: str, other: str) -> None:
    pair = pairs["llama"]
    width = pair.model.hook_points[one].width
    direction = torch.randn(width, generator=torch.Generator().manual_seed(8))
    found = [pair.logits([wb.Steer.along(name, direction, 0.5)]) for name in (one, other)]
    twice = pair.logits([wb.Steer.along(one, direction, 0.25), wb.Steer.along(other, direction, 0.25)])
    assert torch.equal(*found)
    assert close(twice, found[0])
    assert not close(twice, pair.model(TOKENS))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_logits_can_be_edited_while_generating(pairs, rule: Any) -> None:
    """A bias on one logit at some positions makes exactly the tokens chosen there this token."""
    model, favourite = pairs["llama"].model, 123
    bias = torch.zeros(tiny.VOCAB)
    bias[favourite] = 100.0
    steer = wb.Steer.along("hook_unembed", bias, positions=rule)
    written = model.generate(TOKENS[0, :PROMPT], 4, interventions=[steer], stop=False).tokens
    chosen_at = range(PROMPT - 1, PROMPT + 3)  # the position whose logits choose each new token
    assert [token == favourite for token in written] == [reference.chosen(rule, at, PROMPT) for at in chosen_at]


def test_several_directions_are_taken_out_of_some_layers(pairs) -> None:
    """By plain hooks with a projector, and in the weights; the other layers write as before."""
    pair = pairs["llama"]
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    rows[2] = rows[0] + 0.1 * rows[1] + 0.01 * rows[2]  # far from orthogonal
    projector = torch.eye(32, dtype=torch.float64) - torch.linalg.pinv(rows.double()) @ rows.double()
    layer = pair.plain.model.layers[1]
    hooks = [PlainEdit(m, "out", lambda x: (x.double() @ projector).float()) for m in (layer.self_attn, layer.mlp)]
    edit = wb.interventions.AblateDirection(rows[0], rows[1:], [1])  # type: ignore[arg-type]
    assert close(pair.logits([edit]), logits_under(pair.plain, TOKENS, hooks))
    assert close(wb.bake(pair.model, [edit]).model(TOKENS), pair.logits([edit]))
    for change, sentence in (
        ({"more": rows[0] * 3}, "in the span"),
        ({"more": rows[0, :5]}, "as wide as the first"),
        ({"layers": []}, "layers is a list"),
        ({"layers": [True]}, "layers is a list"),
    ):
        with pytest.raises(wb.model.EditError, match=sentence):
            wb.interventions.AblateDirection(rows[0], **change)  # type: ignore[arg-type]
    with pytest.raises(wb.model.EditError, match="no layer 9"):
        pair.logits([wb.interventions.AblateDirection(rows[0], layers=(9,))])  # type: ignore[arg-type]
