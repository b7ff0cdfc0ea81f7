"""The LM head in pieces of the vocabulary, against the whole matrix in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.index.promoted_tokens import promoted_tokens
from workbench.interventions.features import dictionary_of
from workbench.model import lm_head
from workbench.model.lm_head import LMHead, highest, merged
from workbench.neurons.unembedding import top_both

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 50 tokens where `d_model` is 32."""
    monkeypatch.setattr(lm_head, "CONVERTED", 1600)


def wholes(*shape: int, seed: int = 0, largest: int = 2) -> Tensor:
    """Small whole numbers, whose products are exact in every order, with many ties."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=chance).float()


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_products_and_sums_are_those_of_the_whole_matrix(small_pieces: None, dtype: torch.dtype) -> None:
    weight = wholes(331, 32).to(dtype)
    head, vectors, shares = LMHead(weight), wholes(7, 32, seed=1), wholes(331, seed=2)
    whole = weight.float()
    assert len(head) == 331
    assert head.width == 32
    assert torch.equal(head.rows(5), whole[5])
    assert torch.equal(head.rows([7, 3]), whole[[7, 3]])
    assert torch.equal(torch.cat([rows for _, rows in head.pieces()]), whole)
    for some in (vectors, vectors[0], vectors.view(7, 1, 32)):
        assert head.products(some).dtype == torch.float32
        assert torch.equal(head.products(some), some @ whole.T)
    assert torch.equal(head.combination(shares), shares @ whole)
    assert max(len(rows) for _, rows in head.pieces()) == (331 if dtype == torch.float32 else 50)


def test_a_head_in_float32_is_not_copied() -> None:
    weight = wholes(331, 32)
    ((start, rows),) = LMHead(weight).pieces()
    assert start == 0
    assert rows.data_ptr() == weight.data_ptr()


def test_products_are_with_vectors_in_float32_and_not_with_rounded_ones(small_pieces: None) -> None:
    weight = torch.randn(331, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    vectors = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    exact = vectors.double() @ weight.double().T
    assert torch.allclose(LMHead(weight).products(vectors).double(), exact, rtol=1e-5, atol=1e-5)


def by_sorting(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of each row; of equal ones the lowest columns first."""
    rows = [sorted(range(len(row)), key=lambda place: (-row[place], place))[:count] for row in scores.tolist()]
    columns = torch.tensor(rows)
    return scores.gather(1, columns), columns


@pytest.mark.parametrize("width", [3, 70, 1000])
@pytest.mark.parametrize("piece", [2, 64, 300])
def test_equal_scores_stand_in_the_order_of_tokens(width: int, piece: int) -> None:
    scores = wholes(9, width)
    scores[4] = 0
    for sign, side in ((1, 0), (-1, 1)):
        expected = by_sorting(sign * scores, 4)
        best = None
        for start in range(0, width, piece):
            values, columns = top_both(scores[:, start : start + piece], 4)
            best = merged(best, (values[side], columns[side] + start), 4)
        assert best is not None
        assert all(torch.equal(one, other) for one, other in zip(best, expected, strict=True))
        anywhere = (sign * scores).topk(min(5, width)).indices.flip(1)
        found = highest(scores, anywhere, min(4, width), sign)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def with_heads(dtype: torch.dtype) -> wb.model.LanguageModel:
    """A model whose LM head and gates are whole numbers; some tokens have equal rows, and one neuron is pruned."""
    module: Any = tiny.build("llama", tie_word_embeddings=False, num_hidden_layers=2)
    with torch.no_grad():
        for number, layer in enumerate(module.model.layers):
            layer.mlp.gate_proj.weight.copy_(wholes(48, 32, seed=number))
        module.lm_head.weight.copy_(wholes(331, 32, seed=3))
        module.lm_head.weight[200:230] = module.lm_head.weight[:30]
        module.model.layers[1].mlp.gate_proj.weight[5] = 0
    return wb.load_model(module.to(dtype), tokenizer=tiny.tokenizer())


def test_what_reads_the_head_gets_in_16_bits_what_it_gets_in_float32(small_pieces: None, tiny_cache: Path) -> None:
    whole, halves = with_heads(torch.float32), with_heads(torch.bfloat16)
    one, other = (wb.decode_neurons(model, "gate", 10) for model in (whole, halves))
    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.scores, other.scores)
    assert np.allclose(one.excess, other.excess, rtol=1e-4)
    head, gates = (part.weight.detach() for part in (whole.network.module.lm_head, mlp(whole).gate_proj))
    assert torch.equal(torch.from_numpy(one.tokens[0, 48:]).long(), by_sorting(gates @ head.T, 10)[1])
    feature = wb.Feature("neurons.1.gate", 3)
    scores = [wb.neurons.token_scores(model, feature) for model in (whole, halves)]
    assert torch.equal(scores[0], head @ gates[3])
    assert torch.equal(*scores)
    assert wb.neurons.neurons_writing(whole, " dog", "gate") == wb.neurons.neurons_writing(halves, " dog", "gate")
    neurons = dictionary_of(whole, feature)
    promoted, again = (promoted_tokens(model, neurons) for model in (whole, halves))
    assert all(np.array_equal(promoted[name], again[name]) for name in promoted)
    assert np.array_equal(promoted["suppressed"], by_sorting(-gates @ head.T, 10)[1].numpy())
    assert np.array_equal(promoted["suppressed_scores"], -by_sorting(-gates @ head.T, 10)[0].numpy())


def mlp(model: wb.model.LanguageModel) -> Any:
    """The plain MLP of layer 1."""
    return model.network.module.model.layers[1].mlp
