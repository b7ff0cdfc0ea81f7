"""In 16 bits everything gives what it gives in float32 on the same weights, within the rounding of the type.

Two models have the same weights: one in bfloat16 or float16, and one in float32 that holds the same rounded values. A
layer rounds about 16 times, each time by at most half of the type's eps, and the errors add up as random ones do, so
that activations and logits are off by about 2 eps √layers of their length; the law allows twice that. What is computed
from weights alone, in float32, is equal.

The suite runs a seeded sample; `make laws` runs all architectures in both types.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from fuzz_examples import World

import workbench as wb
from workbench.model.weights import parameters_of, state_of
from workbench.model.widened import in_float32
from workbench.surgery.child_building import build

pytestmark = pytest.mark.usefixtures("tiny_cache")

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
NAMES = ("llama", "gemma3", "qwen3", "gpt2", "gpt-neox", "opt", "phi", "mistral")
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
POINT, MLP = "blocks.1.hook_resid_post", ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
TOKENS = torch.arange(24).view(2, 12) * 37 % tiny.VOCAB
CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), "The dog ran. " * 5, "A cat sat."])
FEW = {"tokens": 60, "context": 16, "batch": 2}
NEAR = 1e-3
"""Of results that float32 computes from the same weights, relative to their size."""

Pair = tuple[wb.model.LanguageModel, wb.model.LanguageModel]


@functools.lru_cache(2)
def opened(name: str, kind: str) -> Pair:
    """A model in 16 bits, and one in float32 with the same values of its weights."""
    plain, narrow = zoo.build(name), TYPES[kind]
    weights = {key: one.to(narrow) if one.is_floating_point() else one for key, one in state_of(plain).items()}
    wide = {key: one.float() if one.is_floating_point() else one for key, one in weights.items()}
    made = [build(type(plain), plain.config, tensors) for tensors in (weights, wide)]
    half, exact = (wb.load_model(one, tokenizer=tiny.tokenizer()) for one in made)
    assert (half.dtype, exact.dtype) == (narrow, torch.float32)
    return half, exact


def allowed(half: wb.model.LanguageModel) -> float:
    """How far a tensor may be from that of the model in float32, as a share of its length."""
    return 4 * torch.finfo(half.dtype).eps * half.network.n_layers**0.5


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The length of the difference of two tensors, over the length of the second."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def largest_logit(exact: wb.model.LanguageModel) -> float:
    return float(exact(TOKENS).abs().max())


def logits_and_activations(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    assert half(TOKENS).dtype == half.dtype
    assert off(half(TOKENS), exact(TOKENS)) <= allowed(half)
    names = [f"blocks.{n}.{place}" for n in (0, 1) for place in ("hook_resid_post", "attn.hook_z", "mlp.hook_post")]
    found, wanted = half.capture(TOKENS, names), exact.capture(TOKENS, names)
    for one in names:
        assert found[one].dtype == half.dtype, one
        assert off(found[one], wanted[one]) <= allowed(half), one
    twin = in_float32(half)
    assert twin(TOKENS).dtype == torch.float32
    assert off(twin(TOKENS), exact(TOKENS)) <= NEAR
    assert half(TOKENS).dtype == half.dtype


def texts_under_edits(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    """Each token that is written is one of the likeliest in float32, and its log-probability is the same."""
    width = half.network.d_model
    book = wb.Codebook(width, 8, 1)
    book.reads, book.writes, book.name = POINT, POINT, "book"
    direction = torch.arange(1.0, width + 1).sin()
    edits = {
        "clamp": [wb.Clamp("neurons.1.post:3", 3.0)],
        "scale": [wb.Scale("neurons.0.post:5", -2.0, positions=(1, 4))],
        "ablate": [wb.Ablate("neurons.1.up:7")],
        "steer": [wb.Steer.along(POINT, direction, 2.0, positions="generated")],
        "force": [wb.Force(book.feature(3))],
    }
    for word, some in edits.items():
        spliced = {POINT: book} if word == "force" else {}
        with half.spliced(spliced):
            text = half.generate("The dog ran to", 5, interventions=some, stop=False)
        prompt = half.to_tokens("The dog ran to")
        tokens = torch.cat([prompt, torch.tensor([text.tokens])], 1)
        with exact.spliced(spliced), exact.intervening(some):
            wanted = exact(tokens, prompt_length=prompt.shape[1])[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        found = wanted.gather(1, torch.tensor(text.tokens)[:, None])[:, 0]
        slack = 2 * allowed(half) * largest_logit(exact)
        assert bool((found >= wanted.max(-1).values - slack).all()), word
        assert torch.tensor(text.logprobs).sub(found).abs().max() <= slack, word


def neurons_and_costs(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    found, wanted = (wb.decode_neurons(one, weights="up", top_k=3) for one in (half, exact))
    torch.testing.assert_close(torch.as_tensor(found.scores), torch.as_tensor(wanted.scores), rtol=NEAR, atol=NEAR)
    edits = [wb.Clamp("neurons.1.post:3", 3.0)]
    sides = [wb.compare(one, "The dog ran to", edits, 4, stop=False) for one in (half, exact)]
    slack = 2 * allowed(half) * largest_logit(exact)
    if sides[0].baseline.tokens == sides[1].baseline.tokens:
        assert sides[0].kl == pytest.approx(sides[1].kl, abs=slack)
    same = wb.compare(half, "The dog ran to", [wb.Scale("neurons.1.post:3", 1.0)], 4, stop=False)
    assert same.kl == pytest.approx([0.0] * 4, abs=1e-7)


def dictionaries_and_indexes(half: wb.model.LanguageModel, exact: wb.model.LanguageModel, folder: Path) -> None:
    width = half.network.d_model
    harvests = [torch.cat([one.values[POINT] for one in wb.harvest.Harvest(m, CORPUS, POINT, **FEW)])
                for m in (half, exact)]  # fmt: skip
    assert harvests[0].dtype == torch.float32
    assert off(*harvests) <= allowed(half)
    sae = wb.dictionaries.StandardSAE(width, 2 * width, hook_point=POINT, name="sae")
    scores = [wb.measure_fidelity(m, sae, CORPUS, resamples=9, **FEW) for m in (half, exact)]
    slack = 2 * allowed(half) * largest_logit(exact)
    for field in ("ce", "ce_spliced", "ce_zero", "kl"):
        assert getattr(scores[0], field) == pytest.approx(getattr(scores[1], field), abs=slack), field
    assert scores[0].fvu == pytest.approx(scores[1].fvu, rel=4 * allowed(half))
    indexes = [wb.build_index(m, sae, CORPUS, folder / str(n), **FEW) for n, m in enumerate((half, exact))]
    found, wanted = (torch.tensor([float(one.feature(n).highest or 0) for n in range(width)]) for one in indexes)
    assert off(found, wanted) <= 2 * allowed(half)
    lines: list[list[float]] = [[], []]
    for losses, model in zip(lines, (half, exact), strict=True):
        trained = wb.TopKSAE(width, 2 * width, 4)
        wb.train(trained, model, POINT, CORPUS, tokens=60, context=16, batch_size=16, block=32,
                 log=lambda line, losses=losses: losses.append(line["loss"]))  # fmt: skip
        assert {one.dtype for one in trained.parameters()} == {torch.float32}
    assert lines[0] == pytest.approx(lines[1], rel=8 * allowed(half))


def graphs(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    """The sources of a graph sum to what they explain, and it is the graph of the model in float32."""
    width = half.network.d_model
    coders = [
        wb.dictionaries.TopKTranscoder(
            width, 24, 4, reads=f"blocks.{n}.mlp.hook_in", writes=f"blocks.{n}.hook_mlp_out", name=f"t{n}"
        )
        for n in range(half.network.n_layers)
    ]
    found, wanted = (wb.attribute(one, coders, "The dog ran", 7, max_latents=6) for one in (half, exact))
    totals = torch.tensor(found.totals)
    torch.testing.assert_close(found.weights.sum(1), totals, rtol=NEAR, atol=NEAR * float(totals.abs().max()))
    assert found.totals[0] == pytest.approx(wanted.totals[0], rel=NEAR, abs=NEAR * largest_logit(exact))
    assert found.provenance["model_hash"] == half.hash


def sparsities(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    (found, *_), (wanted, *_) = (
        wb.sparsity.measure_at_thresholds(one, 0.1, CORPUS, resamples=9, **FEW) for one in (half, exact)
    )
    slack = 2 * allowed(half) * largest_logit(exact)
    assert found.ce_plain == pytest.approx(wanted.ce_plain, abs=slack)
    assert found.ce == pytest.approx(wanted.ce, abs=slack)
    assert found.sparsity == pytest.approx(wanted.sparsity, abs=allowed(half))


def children(half: wb.model.LanguageModel, exact: wb.model.LanguageModel, folder: Path) -> None:
    """An operation computes in float32 and rounds once: its child is that of the model in float32, rounded."""
    changes: dict[str, Callable[[Any], Any]] = {
        "bake": lambda one: wb.bake(one, [wb.Scale("neurons.1.post:3", 1.7), wb.Ablate("neurons.0.up:5")]),
        "quantise": lambda one: wb.surgery.quantise(one, 5),
        "prune": lambda one: wb.surgery.prune(one, 0.4, score="magnitude"),
        "dare": lambda one: wb.surgery.dare(one, wb.surgery.quantise(one, 5), 0.5, seed=1),
    }
    for word, change in changes.items():
        child, wanted = change(half), parameters_of(change(exact).model.network.module)
        for name, one in parameters_of(child.model.network.module).items():
            assert one.dtype == half.dtype, (word, name)
            if word != "dare":  # whose delta is that of a child that was rounded before
                assert torch.equal(one, wanted[name].to(one.dtype)), (word, name)
        if word == "bake":
            said = child.certify(CORPUS, 40, context=16)
            assert said.exact is None
            assert said.rounding is not None
            assert said.max_logit_difference is not None
            assert max(said.rounding, said.max_logit_difference) <= 4 * allowed(half) * largest_logit(exact)
            if WHOLE:  # a process of its own takes seconds to begin
                child.save_pretrained(folder / "child")
                check = wb.surgery.verify_checkpoint(folder / "child", child.model, tokens=TOKENS)
                assert check.agrees, check


def learning(half: wb.model.LanguageModel, exact: wb.model.LanguageModel) -> None:
    """Steps that 16 bits would round away are taken; the result is in the model's type."""
    how: dict[str, Any] = {"tokens": 40, "context": 16, "batch": 2, "lr": 3e-3}
    for learn in (functools.partial(wb.surgery.heal, rank=2), wb.surgery.heal, wb.training.fine_tune):
        tuned = [learn(one, CORPUS, **how) for one in (half, exact)]
        found, wanted = (getattr(one, "model", one) for one in tuned)
        assert found.dtype == half.dtype
        before = parameters_of(half.network.module)
        moved = {name: one.float() - before[name].float() for name, one in parameters_of(found.network.module).items()}
        assert any(bool(one.any()) for one in moved.values())
        assert off(found(TOKENS), wanted(TOKENS)) <= 4 * allowed(half)
    assert half(TOKENS).dtype == half.dtype


def circuits(half: wb.model.LanguageModel, exact: wb.model.LanguageModel, folder: Path) -> None:
    """Patching, in both forms; a loss is off by no more than logits are."""
    slack = 4 * allowed(half) * largest_logit(exact)
    for measure in (wb.circuits.patch_components, wb.circuits.attribution_patching):
        found, wanted = (measure(one, World(one, folder).task) for one in (half, exact))
        assert found.plain == pytest.approx(wanted.plain, abs=slack)
        assert float((found.heads - wanted.heads).abs().max()) <= slack
    edges = [wb.circuits.edge_attribution_patching(one, World(one, folder).task) for one in (half, exact)]
    assert float((edges[0] - edges[1]).abs().max()) <= slack


LAWS: dict[str, Callable[..., None]] = {
    one.__name__: one
    for one in (
        logits_and_activations,
        texts_under_edits,
        neurons_and_costs,
        dictionaries_and_indexes,
        graphs,
        sparsities,
        children,
        learning,
        circuits,
    )
}


def sample() -> list[tuple[str, str, str]]:
    """Each law on one of two models, one in each type; everything in `make laws`."""
    if WHOLE:
        return [(name, kind, law) for name in NAMES for kind in TYPES for law in LAWS]
    chance = random.Random(int(os.environ.get("WORKBENCH_SEED", "0")))
    pairs = list(zip(chance.sample(NAMES, 2), TYPES, strict=True))
    return sorted((*chance.choice(pairs), law) for law in LAWS)


@pytest.mark.parametrize(("name", "kind", "law"), sample())
def test_16_bits_give_what_float32_gives_within_their_rounding(name: str, kind: str, law: str, tmp_path: Path) -> None:
    pair = opened(name, kind)
    hashes = [one.hash for one in pair]
    act = LAWS[law]
    act(*pair, *([tmp_path] if "folder" in act.__annotations__ else []))
    assert [one.hash for one in pair] == hashes
