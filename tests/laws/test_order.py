"""The order of calls does not matter: what a model is used for first, and whether that was in inference mode.

What is built at the first use (the bridge, the ways into the stream, probes) is used by everything later, under
gradients too. The suite runs one architecture; `make laws` runs them all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from test_circuit_laws import TASK
from test_operation_laws import settings
from torch import Tensor

import workbench as wb
from workbench.model.weights import identity
from workbench.surgery.registry import OPERATIONS

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
    assert identity(inside.network.module) == inside.weights_hash == first.weights_hash


def test_what_is_made_in_inference_mode_learns_outside(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with torch.inference_mode():
        model = wb.load_model(str(tmp_path / "model"))
        coder = transcoder(model)
        coder.save(tmp_path / "coder")
        again = wb.load_dictionary(tmp_path / "coder")
        child = wb.surgery.prune(model, 0.5, score="magnitude")
    for made in (model.network.module, coder, again, child.model.network.module):
        assert not any(one.is_inference() for one in (*made.parameters(), *made.buffers()))
    for one in (coder, again):
        wb.train(one, model, corpus=CORPUS, tokens=64, batch_size=32, context=16, block=32, seed=0)
    assert torch.equal(coder.W_dec, again.W_dec)
    assert isinstance(tuned(child.model), Tensor)


def some_operations() -> list[str]:
    """Two operations by the seed; all in `make laws`."""
    every = sorted(OPERATIONS)
    if os.environ.get("WORKBENCH_LAWS") == "all":
        return every
    return random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(every, 2)


@pytest.mark.parametrize("operation", some_operations())
def test_a_child_made_in_inference_mode_is_the_same(operation: str, tmp_path: Path) -> None:
    model = opened("llama")
    model.network.module.save_pretrained(tmp_path / "checkpoint")
    chosen = next(settings(OPERATIONS[operation], tmp_path / "checkpoint"))
    wanted = wb.surgery.apply_operation(model, operation, **chosen)
    with torch.inference_mode():
        child = wb.surgery.apply_operation(model, operation, **chosen)
    assert child.model.hash == wanted.model.hash
    assert not any(one.is_inference() for one in child.model.network.module.parameters())


def test_weights_of_inference_mode_are_a_sentence() -> None:
    with torch.inference_mode():
        plain = zoo.build("llama")
    with pytest.raises(wb.model.ModelError, match=r"made inside torch\.inference_mode\(\), so no gradients"):
        wb.circuits.attribution_patching(wb.load_model(plain, tokenizer=tiny.tokenizer()), TASK)
