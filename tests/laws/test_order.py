"""The order of calls does not matter: what a model is used for first, and whether that was in inference mode.

What is built at the first use (the bridge, the ways into the stream, probes) is used by everything later, under
gradients too. The suite runs one architecture; `make laws` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import zoo
from test_circuit_laws import TASK
from torch import Tensor

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.weights import parameters_of

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
TOKENS = torch.arange(10)[None] * 37 % tiny.VOCAB


def transcoder(model: Any, seed: int = 0) -> Any:
    """A transcoder of the last layer."""
    layer = model.network.n_layers - 1
    reads, writes = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"
    return wb.dictionaries.TopKTranscoder(model.network.d_model, 24, k=4, reads=reads, writes=writes, seed=seed)


def trained(model: Any) -> Tensor:
    coder = transcoder(model)
    wb.train(coder, model, corpus=CORPUS, tokens=64, batch_size=32, context=16, block=32, seed=0)
    return coder.W_dec.detach().clone()


def tuned(model: Any) -> Tensor:
    """The logits of a model that learned from two batches."""
    child = wb.surgery.heal(model, CORPUS, tokens=32, rank=2, lr=1e-3, warmup=0.0, batch=1, context=16)
    return child.model(TOKENS)


def through_codebook(model: Any) -> Tensor:
    """The codes of a codebook with which a model was fine-tuned."""
    point = "blocks.1.hook_resid_post"
    book = wb.Codebook(model.network.d_model, 8, hook_point=point, seed=0)
    found = wb.training.fine_tune(model, CORPUS, {point: book}, tokens=32, batch=1, context=16, seed=1)
    return found.splices[point].codes.detach().clone()


def effects(model: Any) -> Tensor:
    """Effects of the nodes of a graph."""
    graph = wb.attribute(model, [transcoder(model)], TOKENS)
    return torch.tensor(sorted(node.gradient_effect for node in graph.nodes))


USES: dict[str, Callable[[Any], Tensor]] = {
    "logits": lambda model: model(TOKENS),
    "attribution patching": lambda model: wb.circuits.attribution_patching(model, TASK).heads,
    "of edges": lambda model: wb.circuits.edge_attribution_patching(model, TASK),
    "patching": lambda model: wb.circuits.patch_components(model, TASK[:1]).heads,
    "effects of features": effects,
    "a direction": lambda model: wb.surgery.direction_of(model, "neurons.1.post:3"),
    "a de-embedding": lambda model: torch.tensor(wb.attribution.deembed(model, transcoder(model), 3).drives.scores),
    "a trained transcoder": trained,
    "a fine-tune": tuned,
    "a fine-tune through a codebook": through_codebook,
}


def use(model: Any, order: list[str]) -> dict[str, Tensor | str]:
    """What comes of each use, in an order: a tensor, or the sentence of a refusal."""
    found: dict[str, Tensor | str] = {}
    for name in order:
        try:
            found[name] = USES[name](model).detach().clone()
        except wb.WorkbenchError as refusal:
            found[name] = str(refusal)
    return found


def opened(name: str) -> Any:
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


def check_same(found: dict[str, Tensor | str], wanted: dict[str, Tensor | str]) -> None:
    for name, value in wanted.items():
        if isinstance(value, str):
            assert found[name] == value, name
        else:
            other = found[name]
            assert isinstance(other, Tensor), f"{name}: {other}"
            assert torch.allclose(other, value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", zoo.sample(0, ("falcon-parallel",), zoo.UNOPENED))
def test_the_first_use_does_not_matter(name: str) -> None:
    """Plain uses, against backwards ones behind a generation, and those behind the same in inference mode."""
    wanted = use(opened(name), list(USES))
    first = opened(name)
    first.generate(TOKENS[0, :5], 2, interventions=[wb.interventions.RemoveLayer(1)], stop=False)
    check_same(use(first, list(reversed(USES))), wanted)
    plain = zoo.build(name)
    with torch.inference_mode():
        inside = wb.load_model(plain, tokenizer=tiny.tokenizer())
        check_same(use(inside, list(USES)), wanted)
    check_same(use(inside, list(USES)), wanted)
    assert fingerprint(parameters_of(inside.network.module)) == inside.hash == first.hash
