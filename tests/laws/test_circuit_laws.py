"""Laws of circuits: what equals the clean prompt costs nothing, a head at zero is a head removed, slopes are steps.

The suite runs a seeded sample of the architectures; `make laws` runs them all.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.circuits.patching import Method
from workbench.circuits.tasks import encode_task

pytestmark = pytest.mark.usefixtures("tiny_cache")

ALWAYS = ("llama", "granite")
SAMPLE = 1
TASK = wb.circuits.Task(
    "animals",
    ["The dog ran to the", "The cat ran to the", "The dog and the cat"],
    ["The dog and to the", "The cat and to the", "The dog ran the cat"],
    [["a", "b"], ["c"], ["d", "d"]],
    [["f"], ["g", "h", "i"], ["j"]],
)


@functools.lru_cache(1)
def opened(name: str) -> Any:
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


def odds(model: Any, edits: Any = ()) -> float:
    """`log P(right) - log P(wrong)` of whole passes, mean over the prompts."""
    total = 0.0
    for prompt, answers, wrong in zip(TASK.positives, TASK.answers, TASK.wrong, strict=True):
        with model.intervening(edits):
            logits = model(prompt)[0, -1].double()
        right, other = ({model.to_tokens(word)[0, -1].item() for word in words} for words in (answers, wrong))
        total += float(logits[sorted(right)].logsumexp(0) - logits[sorted(other)].logsumexp(0))
    return total / len(TASK)


def refused(act: Any) -> Any:
    """The result, or None where the architecture is refused in a sentence."""
    try:
        return act()
    except wb.WorkbenchError:
        return None


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, ALWAYS, zoo.UNOPENED))
def test_what_equals_the_clean_prompt_costs_nothing(name: str, tiny_cache: Path) -> None:
    model = opened(name)
    same = replace(TASK, corrupted=TASK.positives)
    for patch in (wb.circuits.patch_components, wb.circuits.attribution_patching):
        found = refused(lambda patch=patch: patch(model, same))
        if found is not None:
            assert float(found.heads.abs().max()) < 1e-4
            assert float(found.mlps.abs().max()) < 1e-4
            assert found.plain == pytest.approx(odds(model), abs=1e-4)


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, ALWAYS, zoo.UNOPENED))
def test_a_head_at_zero_is_a_head_removed(name: str, tiny_cache: Path) -> None:
    model = opened(name)
    found = refused(lambda: wb.circuits.patch_components(model, TASK, "zero", mlps=False))
    if found is None:
        return
    plain = odds(model)
    assert float(found.heads.abs().max()) > 1e-3
    for layer, head in ((0, 1), (1, 3), (model.network.n_layers - 1, 0)):
        lost = plain - odds(model, [wb.interventions.RemoveHead(layer, head)])
        assert float(found.heads[layer, head]) == pytest.approx(lost, abs=2e-4)


@pytest.mark.parametrize("method", get_args(Method))
def test_effects_do_not_depend_on_the_order_of_the_prompts(method: Any, tiny_cache: Path) -> None:
    model, other = opened("llama"), TASK[[2, 0, 1]]
    one, two = (wb.circuits.patch_components(model, task, method) for task in (TASK, other))
    assert torch.allclose(one.heads, two.heads, atol=1e-5)
    assert torch.allclose(one.mlps, two.mlps, atol=1e-5)


@pytest.mark.parametrize("name", zoo.sample(SAMPLE, ALWAYS, zoo.UNOPENED))
def test_slopes_are_small_steps(name: str, tiny_cache: Path) -> None:
    """Attribution patching, of heads and of edges, is patching where the corrupted prompt is nearly the clean one.

    Where a step makes a router choose another expert, or reaches a limit (OLMo), a shorter one does not.
    """
    try:
        check_slopes(name, 3e-3)
    except AssertionError:
        check_slopes(name, 3e-4)


def check_slopes(name: str, step: float) -> None:
    """Hold slopes against a corrupted prompt that is the clean one and such a share of the difference."""
    from workbench.circuits import patching, patching_edges, patching_gradients, patching_runs

    model, real = opened(name), patching_runs.capture_all
    encoded = refused(lambda: encode_task(model, TASK))

    def nearly(model: Any, tokens: torch.Tensor, names: Any) -> dict[str, torch.Tensor]:
        found = real(model, tokens, names)
        if not torch.equal(tokens, encoded.corrupted):
            return found
        clean = real(model, encoded.tokens, names)
        return {name: clean[name] + step * (found[name] - clean[name]) for name in names}

    with pytest.MonkeyPatch.context() as patch:
        for module in (patching, patching_edges, patching_gradients):
            patch.setattr(module, "capture_all", nearly)
        slopes = refused(lambda: wb.circuits.attribution_patching(model, TASK))
        if slopes is not None:
            true = wb.circuits.patch_components(model, TASK)
            for one, other in ((slopes.heads, true.heads), (slopes.mlps, true.mlps)):
                assert float((one - other).abs().max()) < 0.05 * float(one.abs().max())
        last = model.network.n_layers - 1
        edges = [(0, 0, 1, 1), (0, 3, last, 0), (last - 1, 2, last, 2), (0, 1, last, 3)]
        found = refused(lambda: wb.circuits.edge_attribution_patching(model, TASK))
        if found is not None:
            true = wb.circuits.patch_edges(model, TASK, edges)
            listed = torch.stack([found[edge] for edge in edges])
            assert float((listed - true).abs().max()) < 0.05 * float(listed.abs().max()) + 1e-6
