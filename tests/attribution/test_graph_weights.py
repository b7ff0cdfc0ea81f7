"""Weights of a graph: sums that are complete, against autograd and derivatives, a circuit set by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attribution_models import PROMPT, SKIPPED, coder, coders, norms
from torch import Tensor, nn

import workbench as wb
from workbench.attribution import attribute


@pytest.mark.parametrize("mlps", ["frozen", "linear"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_sums_are_complete(zoo: Any, name: str, mlps: Any) -> None:
    model = zoo[name]
    layers = [0, *range(2, model.network.n_layers)]  # one layer without a transcoder
    graph = attribute(model, coders(model, layers=layers), PROMPT, target=7, mlps=mlps, first=1)
    logits = model(PROMPT[None])[0, -1]
    assert graph.target.value == pytest.approx(float(logits[7] - logits.mean()), rel=1e-4, abs=1e-5)
    assert float(graph.weights[0].sum()) == pytest.approx(graph.target.value, rel=1e-3, abs=1e-4)
    for row, total in zip(graph.weights, graph.totals, strict=True):
        assert float(row.sum()) == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert len(graph.rows) > 5
    assert sum(graph.shares.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "kind", [wb.dictionaries.Transcoder, wb.dictionaries.JumpReLUTranscoder, wb.dictionaries.TopKTranscoder, *SKIPPED]
)
def test_totals_are_activations(llama: wb.model.LanguageModel, kind: Any) -> None:
    mine = coders(llama, kind)
    graph = attribute(llama, mine, PROMPT, target=(3, 11), first=0)
    read = llama.capture(PROMPT, [one.reads for one in mine])
    for id, row, total in zip(graph.rows[1:], graph.weights[1:], graph.totals[1:], strict=True):
        node = graph.node(id)
        value = mine[node.layer].encode(read[mine[node.layer].reads][0, node.position]).value_of(node.feature.index)
        assert node.value == pytest.approx(float(value), rel=1e-4)
        assert total == pytest.approx(node.value, rel=1e-4)
        assert float(row.sum()) == pytest.approx(node.value, rel=1e-3, abs=1e-4)
    logits = llama(PROMPT[None])[0, -1]
    assert graph.target.value == pytest.approx(float(logits[3] - logits[11]), rel=1e-4)


def test_no_source_comes_after_what_reads_it(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7, position=4)
    for row, id in enumerate(graph.rows):
        reader = graph.node(id)
        for column in graph.weights[row].nonzero()[:, 0].tolist():
            source = graph.nodes[column]
            assert source.layer < reader.layer
            assert source.position <= reader.position <= 4


def detached(module: nn.Module, prompt: Tensor, skip: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """A plain llama's logits with norm scales, patterns and MLPs detached, and leaves at each MLP's output (-1: input).

    MLPs pass gradients along `skip` only. Nothing here uses Workbench.
    """
    leaves: dict[int, Tensor] = {}
    handles = []

    def norm(one: Any) -> None:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            x = args[0]
            scale = torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + one.variance_epsilon)
            return x * scale * one.weight

        handles.append(one.register_forward_hook(hook))

    def frozen(layer: int, mlp: nn.Module) -> None:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(out).requires_grad_()
            x = args[0]
            linear = (x - x.detach()) @ skip[layer].T if layer in skip else 0
            return out.detach() + leaves[layer] + linear

        handles.append(mlp.register_forward_hook(hook))

    for path, part in module.named_modules():
        if path.endswith("norm"):
            norm(part)
        if path.endswith(("q_proj", "k_proj")):
            handles.append(part.register_forward_hook(lambda m, args, out: out.detach()))
        if path.endswith("embed_tokens"):

            def embed(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
                leaves[-1] = torch.zeros_like(out).requires_grad_()
                return out.detach() + leaves[-1]

            handles.append(part.register_forward_hook(embed))
    for layer, block in enumerate(module.model.layers):  # type: ignore[attr-defined]
        frozen(layer, block.mlp)
    try:
        return leaves, module(input_ids=prompt[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def test_weights_are_those_of_autograd(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama, wb.dictionaries.TopKSkipTranscoder)
    graph = attribute(llama, mine, PROMPT, target=7, mlps="frozen", first=0)
    plain = tiny.build("llama")
    leaves, logits = detached(plain, PROMPT, {layer: one.W_skip for layer, one in enumerate(mine)})
    value = logits[-1, 7] - logits[-1].mean()
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    checked = 0
    for node, weight in zip(graph.nodes, graph.weights[0].tolist(), strict=True):
        if node.kind == "latent":
            made = node.value * float(
                mine[node.layer].W_dec[node.feature.index] @ gradients[node.layer][0, node.position]
            )
            assert weight == pytest.approx(made, rel=1e-3, abs=1e-5)
            checked += 1
        if node.kind == "embedding":
            vector = plain.model.embed_tokens.weight.detach()[PROMPT[node.position]]
            assert weight == pytest.approx(float(vector @ gradients[-1][0, node.position]), rel=1e-3, abs=1e-5)
    assert checked > 50


def test_free_effects_are_gradients_of_the_plain_model(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama)
    graph = attribute(llama, mine, PROMPT, target=7, first=0)
    plain, leaves = tiny.build("llama"), {}

    def leaf(layer: int) -> Any:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(out).requires_grad_()
            return out + leaves[layer]

        return hook

    for layer, block in enumerate(plain.model.layers):
        block.mlp.register_forward_hook(leaf(layer))
    logits = plain(input_ids=PROMPT[None], use_cache=False).logits[0, -1]
    gradients = torch.autograd.grad(logits[7] - logits.mean(), [leaves[layer] for layer in range(3)])
    for node in graph.nodes:
        if node.kind == "latent":
            slope = float(mine[node.layer].W_dec[node.feature.index] @ gradients[node.layer][0, node.position])
            assert node.gradient_effect == pytest.approx(node.value * slope, rel=1e-3, abs=1e-5)


def linear_model() -> wb.model.LanguageModel:
    """A tiny llama without attention and norms that divide: a linear map from what MLPs write to the logits.

    Norm scales depend on their input, but not their derivative along what is orthogonal to it; so the embedding has one
    huge constant coordinate, which the scale is made of and nothing else reads.
    """
    module = tiny.build("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            for part in (block.mlp.gate_proj, block.mlp.up_proj):
                part.weight[:, 0] = 0
            block.mlp.down_proj.weight[0] = 0
        module.model.embed_tokens.weight[:, 0] = 1e5
        module.config.tie_word_embeddings = False
        head = nn.Linear(32, tiny.VOCAB, bias=False)
        head.weight.copy_(1e3 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
        head.weight[:, 0] = 0
        module.lm_head = head
        for one in norms(module):
            one.weight[0] = 1.0
    return wb.load_model(module, tokenizer=tiny.tokenizer())


def test_on_a_linear_model_attributions_are_derivatives(tiny_cache: Path) -> None:
    model = linear_model()
    last = model.network.n_layers - 1
    (mine,) = coders(model, layers=[last])
    mine.W_dec[:, 0] = 0
    graph = attribute(model, [mine], PROMPT, target=(7, 9), first=0)
    for node in [one for one in graph.nodes if one.kind == "latent" and one.position == len(PROMPT) - 1]:
        values = []
        for factor in (0.0, 2.0):
            edit = wb.Scale(node.feature, factor, positions=[node.position])
            with model.intervening([edit]):
                logits = model(PROMPT[None])[0, -1].double()
            values.append(float(logits[7] - logits[9]))
        assert node.effect == pytest.approx((values[1] - values[0]) / 2, rel=2e-3, abs=1e-4)
        assert node.gradient_effect == pytest.approx(node.effect, rel=1e-3, abs=1e-4)


def handmade() -> tuple[wb.model.LanguageModel, list[Any]]:
    """Two blocks without attention; latent 3 of layer 0 reads the token, latent 5 of layer 1 reads latent 3."""
    module = tiny.build("llama", num_hidden_layers=2)
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        for one in norms(module):
            one.weight.fill_(1.0)
        module.model.embed_tokens.weight.zero_()
        module.model.embed_tokens.weight[:, 0] = 1.0
        module.model.embed_tokens.weight[17, 1] = 2.0
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    mine = [coder(layer, k=2) for layer in (0, 1)]
    for one in mine:
        for tensor in (one.W_enc_T, one.W_dec, one.b_enc, one.b_dec):
            tensor.zero_()
    mine[0].W_enc_T[3, 1] = 1.0
    mine[0].W_dec[3, 2] = 4.0
    mine[1].W_enc_T[5, 1] = 0.5
    mine[1].W_enc_T[5, 2] = 0.25
    return model, mine


def test_a_circuit_made_by_hand(tiny_cache: Path) -> None:
    model, mine = handmade()
    scale = 1 / math.sqrt((1 + 4) / 32 + 1e-6)  # of a stream with 1 and 2 in it
    graph = attribute(model, mine, torch.tensor([5, 17]), target=(mine[1].feature(5), 1), first=0)
    first = next(node for node in graph.nodes if str(node.feature) == "t0:3" and node.position == 1)
    assert first.value == pytest.approx(2 * scale, rel=1e-4)
    (edge,) = [edge for edge in graph.edges_of(0) if edge.source == first.id]
    # its decoder row meets the encoder row in one coordinate: 4 * 0.25; the MLP itself writes nothing, so the error
    # takes away what the latent adds
    assert edge.invariant == pytest.approx(1.0)
    assert edge.scale == pytest.approx(scale, rel=1e-4)
    assert edge.factor == pytest.approx(scale, rel=1e-4)
    assert edge.weight == pytest.approx(2 * scale * scale, rel=1e-4)
    weights = {graph.nodes[column].kind: float(graph.weights[0, column]) for column in graph.weights[0].nonzero()[:, 0]}
    assert weights["error"] == pytest.approx(-edge.weight, rel=1e-4)
    assert weights["embedding"] == pytest.approx(0.5 * 2 * scale, rel=1e-4)
    assert graph.target.value == pytest.approx(scale, rel=1e-4)
    embedding = next(node for node in graph.nodes if node.kind == "embedding" and node.position == 1)
    inner = {edge.source: edge.weight for edge in graph.edges_of(first.id)}
    assert inner == {embedding.id: pytest.approx(2 * scale, rel=1e-4)}


def test_without_transcoders_everything_is_an_mlp(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, [], PROMPT)
    assert {node.kind for node in graph.nodes} == {"target", "bias", "embedding", "mlp"}
    assert graph.completeness()[0] < 1e-3
    assert graph.provenance["target_tokens"] == [int(llama(PROMPT[None])[0, -1].argmax())]
