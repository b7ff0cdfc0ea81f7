"""Patching of many parts at once against single runs with hooks on the plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import zoo as architectures
from torch import Tensor

import workbench as wb
from workbench.circuits import patching_runs
from workbench.circuits.patching import keep_heads, other_prompts, patch_components
from workbench.circuits.patching_edges import patch_edges
from workbench.circuits.patching_gradients import attribution_patching, edge_attribution_patching
from workbench.circuits.patching_runs import head_matrices, head_path
from workbench.circuits.task_evaluation import evaluate_task
from workbench.circuits.tasks import Task, TaskError, encode_task

TASK = Task(
    "animals",
    ["The dog ran to the", "The cat ran to the", "The dog and the cat", "The cat and the dog"],
    ["The dog and to the", "The cat and to the", "The dog ran the cat", "The cat ran the dog"],
    [["a", "b"], ["c"], ["d"], ["e"]],
    [["f"], ["g", "h", "i"], ["j"], ["k"]],
)
KINDS = ("llama", "gpt2", "qwen2")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {kind: tiny.build(kind) for kind in KINDS}


def parts_of(module: Any, layer: int) -> tuple[Any, Any, Any]:
    """The output projection, the MLP, and the norm in front of the attention of a plain model's layer."""
    if hasattr(module, "transformer"):
        block = module.transformer.h[layer]
        return block.attn.c_proj, block.mlp, block.ln_1
    block = module.model.layers[layer]
    return block.self_attn.o_proj, block.mlp, block.input_layernorm


def run(module: Any, ids: Tensor, changes: dict[Any, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
    """Logits behind one prompt; `changes` maps a module to what becomes of its input, or of its output for an MLP."""
    handles = []
    for part, change in (changes or {}).items():
        if "MLP" in type(part).__name__:
            handles.append(part.register_forward_hook(lambda m, a, out, change=change: change(out)))
        else:
            handles.append(part.register_forward_pre_hook(lambda m, a, change=change: (change(a[0]),)))
    with torch.no_grad():
        logits = module(input_ids=ids[None], use_cache=False).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    return logits


def seen(module: Any, ids: Tensor, part: Any) -> Tensor:
    """What goes into a module, or out of an MLP: `[1, pos, width]`."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x.clone())
        return x

    run(module, ids, {part: keep})
    return found[0]


def odds(logits: Tensor, answers: Tensor, wrong: Tensor) -> float:
    return float(logits[answers[answers >= 0]].logsumexp(0) - logits[wrong[wrong >= 0]].logsumexp(0))


def head_put(value: Tensor, head: int) -> Callable[[Tensor], Tensor]:
    """One head of a projection's input becomes the same head of another."""

    def put(x: Tensor) -> Tensor:
        new = x.clone()
        size = x.shape[-1] // 4
        new[..., head * size : (head + 1) * size] = value[..., head * size : (head + 1) * size]
        return new

    return put


def by_loops(module: Any, encoded: Any, method: str) -> tuple[Tensor, Tensor]:
    """Effects of all heads and MLPs, one run for each part and prompt."""
    count, layers = len(encoded.tokens), module.config.num_hidden_layers
    chosen = other_prompts(encoded.tokens, 0)
    heads, mlps = torch.zeros(layers, 4).double(), torch.zeros(layers).double()
    for row in range(count):
        ids = encoded.tokens[row]
        plain = odds(run(module, ids), encoded.answers[row], encoded.wrong[row])
        for layer in range(layers):
            projection, mlp, _ = parts_of(module, layer)
            for part in (projection, mlp):
                if method == "zero":
                    value = torch.zeros_like(seen(module, ids, part))
                elif method == "mean":
                    value = torch.stack([seen(module, one, part) for one in encoded.corrupted]).mean(0)
                elif method == "patch":
                    value = seen(module, encoded.corrupted[row], part)
                else:
                    value = seen(module, encoded.tokens[chosen[row]], part)
                if part is mlp:
                    logits = run(module, ids, {part: lambda x, value=value: value})
                    mlps[layer] += plain - odds(logits, encoded.answers[row], encoded.wrong[row])
                else:
                    for head in range(4):
                        logits = run(module, ids, {part: head_put(value, head)})
                        heads[layer, head] += plain - odds(logits, encoded.answers[row], encoded.wrong[row])
    return heads / count, mlps / count


@pytest.mark.parametrize("method", ["patch", "mean", "zero", "resample"])
@pytest.mark.parametrize("kind", KINDS)
def test_patching_equals_a_loop_of_single_runs(
    zoo: Any, plain: dict[str, Any], kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching_runs, "TOKENS", 40)  # several batches, of prompts and of parts
    found = patch_components(zoo[kind], TASK, method)
    heads, mlps = by_loops(plain[kind], encode_task(zoo[kind], TASK), method)
    assert torch.allclose(found.heads.double(), heads, atol=2e-4)
    assert torch.allclose(found.mlps.double(), mlps, atol=2e-4)
    assert float(heads.abs().max()) > 0.01
    assert found.plain == pytest.approx(evaluate_task(zoo[kind], TASK).logit_difference, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_heads_write_adds_up_to_the_projection(zoo: Any, plain: dict[str, Any], kind: str) -> None:
    projection, _, _ = parts_of(plain[kind], 1)
    z = torch.randn(5, 4, 8)
    bias = projection(torch.zeros(1, 32))
    written = torch.einsum("nhd,hdm->nm", z, head_matrices(zoo[kind], 1))
    assert torch.equal(head_path(zoo[kind], 1).directions(written), written)
    assert torch.allclose(written + bias, projection(z.flatten(1)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_equal_a_loop_of_single_runs(zoo: Any, plain: dict[str, Any], kind: str) -> None:
    model, module = zoo[kind], plain[kind]
    top = model.network.n_layers - 1
    edges = [(0, 0, 1, 1), (0, 3, 1, 0), (0, 1, top, 2), (top - 1, 2, top, 2)]
    found = patch_edges(model, TASK, edges)
    encoded = encode_task(model, TASK)
    expected = torch.zeros(len(edges)).double()
    for number, (source, head, target, reader) in enumerate(edges):
        writes, (reads, _, norm) = parts_of(module, source)[0], parts_of(module, target)
        for row, ids in enumerate(encoded.tokens):
            clean, other = (seen(module, one, writes) for one in (ids, encoded.corrupted[row]))
            change = writes(head_put(other, head)(clean)) - writes(clean)
            heard: list[Tensor] = []

            def keep(x: Tensor, heard: list[Tensor] = heard) -> Tensor:
                heard.append(x.clone())
                return x

            run(module, ids, {norm: lambda x, change=change: x + change.detach(), reads: keep})
            before, after = run(module, ids), run(module, ids, {reads: head_put(heard[0], reader)})
            ends = encoded.answers[row], encoded.wrong[row]
            expected[number] += (odds(before, *ends) - odds(after, *ends)) / len(TASK)
    assert torch.allclose(found.double(), expected, atol=2e-4)
    assert float(expected.abs().max()) > 1e-3


def nearly(task: Task, model: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let the corrupted prompts' activations be nearly the clean ones."""
    from workbench.circuits import patching, patching_edges, patching_gradients

    encoded = encode_task(model, task)
    real = patching_runs.capture_all

    def capture(model: Any, tokens: Tensor, names: Any) -> dict[str, Tensor]:
        found = real(model, tokens, names)
        if not torch.equal(tokens, encoded.corrupted):
            return found
        clean = real(model, encoded.tokens, names)
        return {name: clean[name] + share * (found[name] - clean[name]) for name in names}

    for module in (patching, patching_edges, patching_gradients):
        monkeypatch.setattr(module, "capture_all", capture)


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_is_patching_to_first_order(zoo: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    share = 3e-3
    nearly(TASK, zoo[kind], monkeypatch, share)
    slopes, true = attribution_patching(zoo[kind], TASK), patch_components(zoo[kind], TASK)
    for one, other in ((slopes.heads, true.heads), (slopes.mlps, true.mlps)):
        assert float((one - other).abs().max()) < 0.05 * float(one.abs().max())
    layers, heads = slopes.heads.shape
    pairs = [(a, h, b, g) for b in range(layers) for a in range(b) for h in range(heads) for g in range(heads)]
    found = edge_attribution_patching(zoo[kind], TASK)
    by_edge = patch_edges(zoo[kind], TASK, pairs)
    listed = torch.stack([found[pair] for pair in pairs])
    assert float((listed - by_edge).abs().max()) < 0.05 * float(listed.abs().max())
    assert int((found != 0).sum()) <= len(pairs)


def test_gradients_in_several_batches(llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.circuits import patching_gradients

    whole, edges = attribution_patching(llama, TASK), edge_attribution_patching(llama, TASK)
    monkeypatch.setattr(patching_gradients, "TOKENS", 1)
    parts = attribution_patching(llama, TASK)
    assert torch.allclose(whole.heads, parts.heads, atol=1e-5)
    assert torch.allclose(whole.mlps, parts.mlps, atol=1e-5)
    assert whole.plain == pytest.approx(parts.plain, abs=1e-5)
    assert torch.allclose(edges, edge_attribution_patching(llama, TASK), atol=1e-5)


def test_the_order_of_prompts_makes_no_difference(llama: wb.model.LanguageModel) -> None:
    other = TASK[[2, 0, 3, 1]]
    for method in ("patch", "mean", "zero", "resample"):
        one, two = patch_components(llama, TASK, method), patch_components(llama, other, method)
        assert torch.equal(one.heads, two.heads)
        assert torch.equal(one.mlps, two.mlps)
    assert torch.equal(attribution_patching(llama, TASK).heads, attribution_patching(llama, other).heads)
    assert torch.equal(edge_attribution_patching(llama, TASK), edge_attribution_patching(llama, other))


def test_a_circuit_of_all_heads_is_the_model_and_of_none_is_not(llama: wb.model.LanguageModel) -> None:
    everything = [(layer, head) for layer in range(3) for head in range(4)]
    plain = evaluate_task(llama, TASK)
    assert evaluate_task(llama, TASK, keep_heads(llama, TASK, everything)) == plain
    assert evaluate_task(llama, TASK, keep_heads(llama, TASK, [], others=False)) == plain
    none = evaluate_task(llama, TASK, keep_heads(llama, TASK, []))
    assert none == evaluate_task(llama, TASK, keep_heads(llama, TASK, everything, others=False))
    assert none.logit_difference != pytest.approx(plain.logit_difference, abs=1e-3)
    lost = plain.logit_difference - float(patch_components(llama, TASK, "mean").heads[1, 2])
    one = evaluate_task(llama, TASK, keep_heads(llama, TASK, [(1, 2)], others=False))
    assert one.logit_difference == pytest.approx(lost, abs=1e-4)


def test_what_is_in_force_is_set_aside(llama: wb.model.LanguageModel) -> None:
    alone = patch_components(llama, TASK), attribution_patching(llama, TASK)
    with llama.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]):
        again = patch_components(llama, TASK), attribution_patching(llama, TASK)
    for one, other in zip(alone, again, strict=True):
        assert torch.equal(one.heads, other.heads)


def test_progress_and_giving_up(llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching_runs, "TOKENS", 40)
    told: list[float] = []
    patch_components(llama, TASK, progress=lambda share, _: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1.0
    for act in (patch_components, attribution_patching, edge_attribution_patching):
        with pytest.raises(TaskError, match="cancelled"):
            act(llama, TASK, cancel=lambda: True)
    with pytest.raises(TaskError, match="cancelled"):
        patch_edges(llama, TASK, [(0, 0, 1, 0)], cancel=lambda: True)


def test_refused_in_one_sentence(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(TaskError, match="method is 'patch', 'mean', 'zero' or 'resample'"):
        patch_components(llama, TASK, "swap")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="at least two"):
        patch_components(llama, TASK[:1], "resample")
    with pytest.raises(TaskError, match="no head 4 in layer 0"):
        keep_heads(llama, TASK, [(0, 4)])
    for edge in ((1, 0, 1, 0), (1, 0, 0, 0), (0, 4, 1, 0), (0, 0, 3, 0), (-1, 0, 1, 0)):
        with pytest.raises(TaskError, match="later layer"):
            patch_edges(llama, TASK, [edge])
    with pytest.raises(TaskError, match="same number of tokens"):
        patch_components(llama, replace(TASK, corrupted=["The", *TASK.corrupted[1:]]))


@pytest.mark.usefixtures("tiny_cache")
def test_heads_that_are_not_apart_are_refused() -> None:
    """As in latent attention, whose values are as many as heads times widths, in another order."""
    model = wb.load_model(architectures.build("deepseek-v2"), tokenizer=tiny.tokenizer())
    for act in (patch_components, attribution_patching, edge_attribution_patching):
        with pytest.raises(TaskError, match="hook_z does not have them apart"):
            act(model, TASK)
