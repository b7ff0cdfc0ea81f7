"""In 16 bits a model has the hook points that it has in float32: the same modules serve and the same edits are refused.

The suite runs eight architectures, each in one of the types; `make laws` runs them all in both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.model import hookpoint_table
from workbench.model.prefix import UnclearError, float32_prefix

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
TYPES = (torch.bfloat16, torch.float16)
EIGHT = ("llama", "gemma3", "qwen3", "gpt2", "gpt-neox", "opt", "phi", "mistral")
CASES = [(name, TYPES[place % 2]) for place, name in enumerate(EIGHT)]
if WHOLE:
    CASES = [(name, kind) for name in zoo.ZOO if name not in zoo.UNOPENED for kind in TYPES]
KINDS = {"gemma2": 2, "gpt-neo": 2, "smollm3": 2, "deepseek-v2": 2, "llama": 1, "gpt2": 1}
"""How many layers hold every kind of layer."""


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_table_is_that_of_float32(
    name: str, dtype: torch.dtype, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = zoo.build(name)
    whole = wb.load_model(plain).hook_points
    compared = []
    compare = hookpoint_table.compared
    monkeypatch.setattr(hookpoint_table, "compared", lambda *args: compared.append(args[0]) or compare(*args))
    half = wb.load_model(plain.to(dtype)).hook_points
    assert list(half.values()) == list(whole.values())
    assert [one.dtype for one in compared] == [torch.float32]  # found on the copy alone


@pytest.mark.parametrize("name", KINDS)
def test_the_copy_holds_every_kind_of_layer(name: str) -> None:
    plain: Any = zoo.build(name).to(torch.bfloat16)
    prefix = float32_prefix(plain)
    assert len(prefix.module.get_submodule(prefix.layers)) == KINDS[name]
    assert {tensor.dtype for tensor in prefix.module.parameters()} == {torch.float32}
    assert prefix.module.get_input_embeddings().weight.shape[0] == prefix.tokens < tiny.VOCAB
    assert {tensor.dtype for tensor in plain.parameters()} == {torch.bfloat16}
    assert len(plain.get_submodule(prefix.layers)) == len(prefix.like)


def test_a_layer_with_an_attribute_of_its_own_is_of_another_kind() -> None:
    plain: Any = tiny.build("llama").to(torch.bfloat16)
    assert float32_prefix(plain).like == (0, 0, 0)
    plain.model.layers[1].mlp.limit = 3.0
    assert float32_prefix(plain).like == (0, 1, 0)
    plain.model.layers[2].self_attn.scaling *= 2
    assert float32_prefix(plain).like == (0, 1, 2)


def test_a_model_whose_layers_are_unclear_is_compared_as_it_is(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = tiny.build("llama").to(torch.bfloat16)

    def unclear(module: Any) -> Any:
        raise UnclearError

    monkeypatch.setattr(hookpoint_table, "float32_prefix", unclear)
    points = wb.load_model(plain).hook_points
    assert "blocks.2.mlp.hook_post" in points


def test_an_edit_where_the_bridge_mixes_types_is_one_sentence(tiny_cache: Path) -> None:
    model = wb.load_model(zoo.build("olmo2"), tokenizer=tiny.tokenizer(), dtype="bfloat16")
    with pytest.raises(wb.model.ModelError, match=r"compute blocks\.1\.attn\.hook_rot_q .* in bfloat16 .* float32"):
        model.capture(model.to_tokens("The dog"), ["blocks.1.attn.hook_rot_q"])
    assert model.capture(model.to_tokens("The dog"), ["blocks.1.hook_resid_post"])
