"""Weights of a graph where norms stand behind attention and MLP, in parallel blocks, with factors and caps.

The truth is autograd on plain models of the zoo, with norm scales, patterns and MLPs detached by hooks of these tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from attribution_models import PROMPT, coder
from torch import Tensor, nn

import workbench as wb
from workbench.attribution import attribute

WORDS = ("hook_mlp_out", "mlp.hook_out")


def opened(name: str, word: str) -> tuple[Any, list[Any]]:
    """A model of the zoo, and a transcoder for each layer that writes at a hook point of this name."""
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    mine = [coder(layer, k=5) for layer in range(model.network.n_layers)]
    for layer, one in enumerate(mine):
        one.writes = f"blocks.{layer}.{word}"
    return model, mine


def frozen_norm(module: nn.Module, centres: bool) -> Any:
    """A hook after which a norm without a bias is its input times numbers that are constants."""

    def hook(_: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x = args[0] - args[0].mean(-1, keepdim=True) if centres else args[0]
        return x * (out / x).detach()

    return module.register_forward_hook(hook)


def detached(plain: Any, centres: bool) -> tuple[list[Tensor], Tensor]:
    """A leaf at each MLP's own output, and the logits at the last position, with all else that bends detached."""
    leaves: list[Tensor] = []

    def leaf(_: nn.Module, __: tuple, out: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(out).requires_grad_())
        return out.detach() + leaves[-1]

    for path, module in plain.named_modules():
        word = path.rsplit(".", 1)[-1]
        if "norm" in word and word not in ("q_norm", "k_norm"):
            frozen_norm(module, centres)
        elif word in ("q_proj", "k_proj"):
            module.register_forward_hook(lambda _, __, out: out.detach())
        elif word == "mlp":
            module.register_forward_hook(leaf)
    return leaves, plain(input_ids=PROMPT[None], use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "granite", "cohere"])
def test_weights_are_those_of_autograd(tiny_cache: Path, name: str) -> None:
    """Behind a norm a decoder row is one of the stream; before it, the norm acts on the row."""
    leaves, logits = detached(zoo.build(name), centres=name == "cohere")
    gradients = torch.autograd.grad(logits[7] - logits.mean(), leaves)
    model, mine = opened(name, "mlp.hook_out")
    graph = attribute(model, mine, PROMPT, target=7, first=0)
    checked = 0
    for node, weight in zip(graph.nodes, graph.weights[0].tolist(), strict=True):
        if node.kind == "latent":
            direction = mine[node.layer].W_dec[node.feature.index]
            true = node.value * float(direction @ gradients[node.layer][0, node.position])
            assert weight == pytest.approx(true, rel=2e-3, abs=2e-5)
            checked += 1
    assert checked > 50
    assert max(graph.completeness()) < 1e-3


@pytest.mark.parametrize("name", ["gemma3", "granite"])
def test_both_places_of_a_transcoder_explain_the_same_prediction(tiny_cache: Path, name: str) -> None:
    values = []
    for word in WORDS:
        model, mine = opened(name, word)
        graph = attribute(model, mine, PROMPT, target=(3, 11), max_latents=30)
        assert max(graph.completeness()) < 1e-3
        pairs = zip(graph.nodes, graph.weights[0].tolist(), strict=True)
        values.append((graph.target.value, sum(weight for node, weight in pairs if node.kind == "embedding")))
        for edge in [e for e in graph.edges_of(0) if e.invariant is not None][:5]:
            source = graph.node(edge.source)
            if source.layer == model.network.n_layers - 1 and source.position == len(PROMPT) - 1:
                behind = 1.0
                if name == "gemma3" and word == "mlp.hook_out":
                    x = model.capture(PROMPT, ["blocks.2.ln2_post.hook_in"])["blocks.2.ln2_post.hook_in"][0, -1]
                    behind = float((x.square().mean() + 1e-6).rsqrt())
                assert edge.factor == pytest.approx(edge.scale * edge.invariant * behind, rel=1e-3)
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_cap_on_logits_is_part_of_the_target(tiny_cache: Path) -> None:
    """The target is the model's own logit, and effects of small steps are gradients through the cap."""
    model, mine = opened("gemma2", "hook_mlp_out")
    for cap in (30.0, 2.0):
        model.network.config.final_logit_softcapping = cap
        graph = attribute(model, mine, PROMPT, target=7)
        plain = zoo.build("gemma2", final_logit_softcapping=cap)
        leaves: list[Tensor] = []

        def leaf(_: nn.Module, __: tuple, out: Any, leaves: list[Tensor] = leaves) -> Any:
            leaves.append(torch.zeros_like(out).requires_grad_())
            return out + leaves[-1]

        for block in plain.model.layers:
            block.post_feedforward_layernorm.register_forward_hook(leaf)
        logits = plain(input_ids=PROMPT[None], use_cache=False).logits[0, -1]
        gradients = torch.autograd.grad(logits[7] - logits.mean(), leaves)
        assert graph.target.value == pytest.approx(float((logits[7] - logits.mean()).detach()), rel=1e-4)
        assert max(graph.completeness()) < 1e-3
        for node in graph.nodes:
            if node.kind == "latent":
                slope = float(mine[node.layer].W_dec[node.feature.index] @ gradients[node.layer][0, node.position])
                assert node.gradient_effect == pytest.approx(node.value * slope, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["olmo", "mpt", "gpt-j", "mixtral"])
def test_sums_are_complete_and_verified(tiny_cache: Path, name: str) -> None:
    """Values cut off at a limit, modules that add the stream inside, one norm for both parts, experts."""
    model, mine = opened(name, "hook_mlp_out")
    graph = attribute(model, mine[:1] + mine[2:], PROMPT, target=7)
    assert max(graph.completeness()) < 1e-3
    found = wb.attribution.verify_graph(model, mine[:1] + mine[2:], graph, 8, factor=0.5, regimes=["direct"])
    assert found.measured["direct"] == pytest.approx(found.predicted["direct"], rel=1e-2, abs=1e-3)
    logits = zoo.build(name)(input_ids=PROMPT[None], use_cache=False).logits[0, -1].detach()
    assert graph.target.value == pytest.approx(float(logits[7] - logits.mean()), rel=1e-4)
    assert graph.provenance["target_probabilities"] == [pytest.approx(float(logits.softmax(-1)[7]), rel=1e-3)]
